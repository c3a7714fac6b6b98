/* Every head of few tokens times the matrix of its head, which may lie in either order: what folds latents into queries and
   values. Each matrix is read in the order in which it lies; threads divide heads and tokens, so that they change no bit.

   Shapes: x (n, h, k) and W (h, k, w) with any strides but for the last of x, which is 1, and one of W's two inner ones;
   y (n, h, w) contiguous. */
#include "products.h"

#define MANY 100000 /* products that are worth a second thread */

/* The pairs that two rows of W, `of_row` apart, make of each other. */
static inline pairs rows_at(const number *row, size of_row) {
#ifdef BFLOAT16
  return side_by_side(load_shorts(row), load_shorts(row + of_row));
#else
  (void)of_row;
  return get(row);
#endif
}

/* y[r] = x[r] W over `sides` registers of columns, for `rows` rows of x. */
static inline __attribute__((always_inline)) void columns_of(const number *const *x, const number *maps, number *const *y,
                                                            size k, size of_row, const int rows, const int sides) {
  lanes sums[ROWS][SIDES];
  for (int r = 0; r < rows; r++)
    for (int side = 0; side < sides; side++) sums[r][side] = all(0);
  size i = 0;
  for (; i + PAIR <= k; i += PAIR)
    for (int side = 0; side < sides; side++) {
      pairs part = rows_at(maps + i * of_row + side * LANES, of_row);
      for (int r = 0; r < rows; r++) {
        pair each;
        memcpy(&each, x[r] + i, sizeof each);
        sums[r][side] = multiply(sums[r][side], each, part);
      }
    }
  for (; i < k; i++)
    for (int side = 0; side < sides; side++)
      for (int r = 0; r < rows; r++) sums[r][side] += wide(x[r][i]) * get(maps + i * of_row + side * LANES);
  for (int r = 0; r < rows; r++)
    for (int side = 0; side < sides; side++) put(y[r] + side * LANES, sums[r][side]);
}

static inline __attribute__((always_inline)) void sums_of(const number *const *x, const number *maps, number *const *y,
                                                         size k, size w, size of_row, const int rows) {
  number *to[ROWS];
  size j = 0;
  for (; j + SIDES * LANES <= w; j += SIDES * LANES) {
    for (int r = 0; r < rows; r++) to[r] = y[r] + j;
    columns_of(x, maps + j, to, k, of_row, rows, SIDES);
  }
  for (; j + LANES <= w; j += LANES) {
    for (int r = 0; r < rows; r++) to[r] = y[r] + j;
    columns_of(x, maps + j, to, k, of_row, rows, 1);
  }
  for (; j < w; j++)
    for (int r = 0; r < rows; r++) {
      float total = 0;
      for (size i = 0; i < k; i++) total += wide(x[r][i]) * wide(maps[i * of_row + j]);
      y[r][j] = narrow(total);
    }
}

/* W (h, k, w) in steps of `of_head` and `of_row`. */
void NAMED(heads_sums)(const number *x, const number *maps, number *y, size n, size h, size k, size w, size x_token,
                       size x_head, size of_head, size of_row) {
  size parts = (n + ROWS - 1) / ROWS;
#pragma omp parallel for if (n * h * k * w > MANY)
  for (size one = 0; one < h * parts; one++) {
    size head = one / parts, top = one % parts * ROWS, rows = top + ROWS < n ? ROWS : n - top;
    const number *from[ROWS];
    number *to[ROWS];
    for (size r = 0; r < rows; r++) {
      from[r] = x + (top + r) * x_token + head * x_head;
      to[r] = y + ((top + r) * h + head) * w;
    }
    if (rows == 4)
      sums_of(from, maps + head * of_head, to, k, w, of_row, 4);
    else if (rows == 3)
      sums_of(from, maps + head * of_head, to, k, w, of_row, 3);
    else if (rows == 2)
      sums_of(from, maps + head * of_head, to, k, w, of_row, 2);
    else
      sums_of(from, maps + head * of_head, to, k, w, of_row, 1);
  }
}

/* The same where W lies turned, (h, w, k), a column after the other. */
void NAMED(heads_products)(const number *x, const number *maps, number *y, size n, size h, size k, size w, size x_token,
                           size x_head, size of_head) {
#pragma omp parallel for if (n * h * k * w > MANY)
  for (size head = 0; head < h; head++)
    for (size first = 0; first < w; first += COLUMNS) {
      size columns = first + COLUMNS < w ? COLUMNS : w - first;
      for (size top = 0; top < n; top += ROWS) {
        size rows = top + ROWS < n ? ROWS : n - top;
        const number *from[ROWS];
        number *to[ROWS];
        float found[COLUMNS * ROWS] = {0};
        for (size r = 0; r < rows; r++) {
          from[r] = x + (top + r) * x_token + head * x_head;
          to[r] = y + ((top + r) * h + head) * w + first;
        }
        products(from, rows, maps + head * of_head, NULL, first, columns, k, found);
        put_block(found, rows, columns, to);
      }
    }
}
