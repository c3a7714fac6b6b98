/* Attention of one new token per sequence to the cached entries, where they lie: nothing is gathered.

   The heads of a group share each entry that is read, ROWS of them at a time. Sums run over the positions in order, so
   that threads, which divide sequences, groups and heads, change no bit, and neither do the other sequences. Entries may be
   codes of 8 bits (kernels/int8_entries.py): those of a sequence and group are widened first.

   Shapes: n sequences, h query heads, g key heads, k query/key width, w value width; entries of `width` numbers, in which
   the key of a group begins at group * k and its value at value_at + group * w; contiguous. */
#include "products.h"

#define MANY 100000 /* products that are worth a second thread */

/* scores[r * S + s] = scale * q[r] . entry[s][key...], COLUMNS entries at a time; `rows` is at most ROWS. */
static inline void scores_of(const number *const *q, const number *const *entry, size key, size S, size length, size k,
                             float scale, float *scores, size rows) {
  for (size s = 0; s < length; s += COLUMNS) {
    const number *keys[COLUMNS], *none[COLUMNS] = {0};
    float found[ROWS * COLUMNS];
    for (size c = 0; c < COLUMNS; c++) keys[c] = entry[s + c < length ? s + c : length - 1] + key;
    block(q, rows, keys, none, k, found);
    for (size r = 0; r < rows; r++)
      for (size c = 0; c < COLUMNS; c++) scores[r * S + s + c] = found[r * COLUMNS + c] * scale;
  }
}

/* out[r][.] = sum of weights[r * S + s] * entry[s][value...], divided by totals[r], over `sides` registers of numbers
   from j on. */
static inline __attribute__((always_inline)) void numbers_of(const float *weights, const number *const *entry, size value,
                                                            size S, size length, const float *totals,
                                                            number *const *out, size j, const int rows, const int sides) {
  lanes sums[ROWS][SIDES];
  for (int r = 0; r < rows; r++)
    for (int side = 0; side < sides; side++) sums[r][side] = all(0);
  for (size s = 0; s < length; s++)
    for (int side = 0; side < sides; side++) {
      lanes part = get(entry[s] + value + j + side * LANES);
      for (int r = 0; r < rows; r++) sums[r][side] += weights[r * S + s] * part;
    }
  for (int r = 0; r < rows; r++)
    for (int side = 0; side < sides; side++) put(out[r] + j + side * LANES, sums[r][side] / totals[r]);
}

static inline __attribute__((always_inline)) void values_of(const float *weights, const number *const *entry, size value,
                                                           size S, size length, size w, const float *totals,
                                                           number *const *out, const int rows) {
  size j = 0;
  for (; j + SIDES * LANES <= w; j += SIDES * LANES)
    numbers_of(weights, entry, value, S, length, totals, out, j, rows, SIDES);
  for (; j + LANES <= w; j += LANES) numbers_of(weights, entry, value, S, length, totals, out, j, rows, 1);
  for (; j < w; j++)
    for (int r = 0; r < rows; r++) {
      float total = 0;
      for (size s = 0; s < length; s++) total += weights[r * S + s] * wide(entry[s][value + j]);
      out[r][j] = narrow(total / totals[r]);
    }
}

/* An entry's two vectors of a group, of `vector` and `other` codes, to numbers side by side. */
static inline void widen_entry(const int8_t *codes, const float *scales, number *to, size g, size group, size vector,
                               size other) {
  const int8_t *first = codes + group * vector, *second = codes + g * vector + group * other;
  for (size i = 0; i < vector; i++) to[i] = narrow((float)first[i] * scales[group]);
  for (size i = 0; i < other; i++) to[vector + i] = narrow((float)second[i] * scales[g + group]);
}

/* Returns 0, or 1 when memory is short. `table` has n rows of `blocks` numbers of blocks, each of `block` entries. Where cells
   are codes, each has 2 g scales: of g vectors of `vector` codes, and of g that share the rest; else scales are NULL. */
int NAMED(paged_attention)(const number *q, const void *cells, const float *cell_scales, const int64_t *table,
                           const int64_t *lengths, number *out, size n, size blocks, size block, size longest, size width,
                           size vector, size h, size g, size k, size w, size value_at, float scale) {
  size each = h / g, parts = (each + ROWS - 1) / ROWS, S = rounded(longest, LANES), other = width / g - vector;
  int failed = 0;
#pragma omp parallel if (n * h * longest * k > MANY)
  {
    float *scores = room(ROWS * S);
    const number **entry = malloc((size_t)(S + 1) * sizeof(number *));
    number *widened = cell_scales ? fresh(S * (vector + other) * (size)sizeof(number)) : NULL;
    size held = -1; /* the sequence and group that are widened */
#pragma omp for schedule(dynamic)
    for (size one = 0; one < n * g * parts; one++) {
      size i = one / (g * parts), group = one / parts % g, first = group * each + one % parts * ROWS;
      size rows = (group + 1) * each - first, length = lengths[i];
      const number *from[ROWS];
      number *to[ROWS];
      float totals[ROWS];
      if (rows > ROWS) rows = ROWS;
      if (!scores || !entry || (cell_scales && !widened)) {
        failed = 1;
        continue;
      }
      for (size b = 0, s = 0; s < length; b++) {
        size cell = table[i * blocks + b] * block;
        for (size t = 0; t < block && s < length; t++, cell++, s++) {
          number *own = cell_scales ? widened + s * (vector + other) : NULL;
          entry[s] = own ? own : (const number *)cells + cell * width;
          if (own && held != i * g + group)
            widen_entry((const int8_t *)cells + cell * width, cell_scales + cell * 2 * g, own, g, group, vector,
                        other);
        }
      }
      held = i * g + group;
      size key = cell_scales ? 0 : group * k, value = value_at + group * w;
      if (cell_scales) value = value_at ? vector : 0;
      for (size r = 0; r < rows; r++) {
        from[r] = q + (i * h + first + r) * k;
        to[r] = out + (i * h + first + r) * w;
      }
      scores_of(from, entry, key, S, length, k, scale, scores, rows);
      for (size r = 0; r < rows; r++) weigh(scores + r * S, length, rounded(length, LANES), totals + r);
      if (rows == 4)
        values_of(scores, entry, value, S, length, w, totals, to, 4);
      else if (rows == 3)
        values_of(scores, entry, value, S, length, w, totals, to, 3);
      else if (rows == 2)
        values_of(scores, entry, value, S, length, w, totals, to, 2);
      else
        values_of(scores, entry, value, S, length, w, totals, to, 1);
    }
    free(scores);
    free(entry);
    free(widened);
  }
  return failed;
}
