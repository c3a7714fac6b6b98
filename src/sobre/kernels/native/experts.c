/* The routed experts of few tokens: each row of a visited expert's weights is read once from memory, where it lies.

   y = sum over the token's experts of weight * down (silu(gate x) * up x), what is in the brackets rounded to `number`.
   Threads divide the rows of the weights of the visited experts, and then the tokens, so that they change no bit.

   Shapes: n tokens, `active` experts of each (a copy of the token goes to each), `all` experts, d model width, f expert
   width; the weights of all experts are stacked. */
#include "products.h"
#ifndef LACKS_FORM

#define MANY 100000 /* products that are worth a second thread */

/* The copies sorted by expert: those of expert e are order[begin[e]] up to order[begin[e + 1]]. */
static void sort(const int64_t *experts, size copies, size all_experts, int64_t *begin, int64_t *order) {
  memset(begin, 0, (size_t)(all_experts + 1) * sizeof *begin);
  for (size i = 0; i < copies; i++) begin[experts[i] + 1]++;
  for (size e = 0; e < all_experts; e++) begin[e + 1] += begin[e];
  for (size i = 0; i < copies; i++) order[begin[experts[i]]++] = i;
  for (size e = all_experts; e > 0; e--) begin[e] = begin[e - 1];
  begin[0] = 0;
}

/* Numbers of the experts that somebody visits, in order; returns how many. */
static size visited(const int64_t *begin, size all_experts, int64_t *numbers) {
  size found = 0;
  for (size e = 0; e < all_experts; e++)
    if (begin[e] < begin[e + 1]) numbers[found++] = e;
  return found;
}

/* gates to silu(gates) * ups, as `products` leaves them. */
static inline void gate_by(float *gates, const float *ups) {
  for (size i = 0; i < COLUMNS * ROWS; i += LANES) {
    lanes x = load(gates + i);
    store(gates + i, x / (1.0f + exponential(-x)) * load(ups + i));
  }
}

/* One of an expert's matrices, of o rows and n columns, among those of all. */
typedef struct {
  const weight *codes;
  const number *scales;
} matrix;

static inline matrix of(size e, const weight *codes, const number *scales, size o, size n) {
  return (matrix){codes + e * o * n / PER_BYTE, scales ? scales + e * o * (GROUP ? n / GROUP : 1) : NULL};
}

/* inner has n * active * f numbers, parts n * active * d, order 2 all + 1 + n * active; y has n * d. Returns 0, or 1 when
   memory is short. */
int NAMED(few_experts)(const number *x, const int64_t *experts, const float *weights, const weight *gate,
                       const number *gate_scales, const weight *up, const number *up_scales, const weight *down,
                       const number *down_scales, number *inner, float *parts, int64_t *order, number *y, size n,
                       size active, size all_experts, size d, size f) {
  size copies = n * active, in_blocks = rounded(f, COLUMNS) / COLUMNS, out_blocks = rounded(d, COLUMNS) / COLUMNS;
  int64_t *begin = order, *sorted = begin + all_experts + 1, *numbers = sorted + copies;
  given *given_x = given_room(x, n, d), *given_inner = given_room(inner, copies, f);
  if (copies && (!given_x || !given_inner)) {
    free_given(given_x);
    free_given(given_inner);
    return 1;
  }
  for (size i = 0; i < n; i++) prepare(x + i * d, d, given_x + i * given_of(d));
  sort(experts, copies, all_experts, begin, sorted);
  size here = visited(begin, all_experts, numbers);
#pragma omp parallel if (copies * d * f > MANY)
  {
#pragma omp for schedule(dynamic, 16)
    for (size one = 0; one < here * in_blocks; one++) {
      size e = numbers[one / in_blocks], first = one % in_blocks * COLUMNS, columns = first + COLUMNS < f ? COLUMNS : f - first;
      matrix gate_e = of(e, gate, gate_scales, f, d), up_e = of(e, up, up_scales, f, d);
      for (size top = begin[e]; top < begin[e + 1]; top += ROWS) {
        size rows = top + ROWS < begin[e + 1] ? ROWS : begin[e + 1] - top;
        const given *from[ROWS];
        number *to[ROWS];
        float gates[COLUMNS * ROWS] = {0}, ups[COLUMNS * ROWS] = {0}; /* fewer rows fill some of it */
        for (size r = 0; r < rows; r++) {
          from[r] = given_x + sorted[top + r] / active * given_of(d);
          to[r] = inner + sorted[top + r] * f + first;
        }
        products(from, rows, gate_e.codes, gate_e.scales, first, columns, d, gates);
        products(from, rows, up_e.codes, up_e.scales, first, columns, d, ups);
        gate_by(gates, ups);
        put_block(gates, rows, columns, to);
      }
    }
#pragma omp for
    for (size i = 0; i < copies; i++) prepare(inner + i * f, f, given_inner + i * given_of(f));
#pragma omp for schedule(dynamic, 16)
    for (size one = 0; one < here * out_blocks; one++) {
      size e = numbers[one / out_blocks], first = one % out_blocks * COLUMNS, columns = first + COLUMNS < d ? COLUMNS : d - first;
      matrix down_e = of(e, down, down_scales, d, f);
      for (size top = begin[e]; top < begin[e + 1]; top += ROWS) {
        size rows = top + ROWS < begin[e + 1] ? ROWS : begin[e + 1] - top;
        const given *from[ROWS];
        float found[COLUMNS * ROWS];
        for (size r = 0; r < rows; r++) from[r] = given_inner + sorted[top + r] * given_of(f);
        products(from, rows, down_e.codes, down_e.scales, first, columns, f, found);
        for (size r = 0; r < rows; r++)
          for (size c = 0; c < columns; c++) parts[sorted[top + r] * d + first + c] = found[r * COLUMNS + c];
      }
    }
#pragma omp for
    for (size i = 0; i < n; i++) {
      size j = 0;
      for (; j + LANES <= d; j += LANES) {
        lanes total = all(0);
        for (size a = i * active; a < (i + 1) * active; a++) total += weights[a] * load(parts + a * d + j);
        put(y + i * d + j, total);
      }
      for (; j < d; j++) {
        float total = 0;
        for (size a = i * active; a < (i + 1) * active; a++) total += weights[a] * parts[a * d + j];
        y[i * d + j] = narrow(total);
      }
    }
  }
  free_given(given_x);
  free_given(given_inner);
  return 0;
}
#endif
