/* Every head of few tokens times the matrix of its head, which may lie in either order: what folds latents into queries and
   values. Each matrix is read in the order in which it lies; threads divide heads and tokens, so that they change no bit.

   Shapes: x (n, h, k) and W (h, k, w) with any strides but for the last of x, which is 1, and one of W's two inner ones;
   y (n, h, w) contiguous. */
#ifdef __AVX512F__
#define LANES 16
#endif
#include "products.h"

#define MANY 100000 /* products that are worth a second thread */

/* W (h, k, w) in steps of `of_head` and `of_row`. Returns 0, or 1 when memory is short. */
int NAMED(heads_sums)(const number *x, const number *maps, number *y, size n, size h, size k, size w, size x_token,
                      size x_head, size of_head, size of_row) {
  int failed = 0;
#pragma omp parallel if (n * h * k * w > MANY)
  {
    float *sums = room(w);
    if (!sums) failed = 1;
#pragma omp for
    for (size one = 0; one < h * n; one++) {
      if (!sums) continue;
      size head = one / n, token = one % n;
      number *to = y + (token * h + head) * w;
      memset(sums, 0, (size_t)w * sizeof(float));
      for (size i = 0; i < k; i++) {
        const number *row = maps + head * of_head + i * of_row;
        float each = wide(x[token * x_token + head * x_head + i]);
        size j = 0;
        for (; j + LANES <= w; j += LANES) store(sums + j, load(sums + j) + each * get(row + j));
        for (; j < w; j++) sums[j] += each * wide(row[j]);
      }
      for (size j = 0; j < w; j++) to[j] = narrow(sums[j]);
    }
    free(sums);
  }
  return failed;
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
        float found[COLUMNS * ROWS];
        for (size r = 0; r < rows; r++) from[r] = x + (top + r) * x_token + head * x_head;
        products(from, rows, maps + head * of_head, NULL, first, columns, k, found);
        for (size r = 0; r < rows; r++)
          for (size c = 0; c < columns; c++) y[((top + r) * h + head) * w + first + c] = narrow(found[c * ROWS + r]);
      }
    }
}
