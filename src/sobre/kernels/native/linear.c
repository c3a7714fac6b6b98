/* y = x W^T + b for few rows of x: each weight is read once from memory, where it lies. Threads divide the rows of W, so
   that they change no bit.

   Shapes: x (n, d), W (o, d), b (o) or NULL, y (n, o); contiguous. */
#include "products.h"

#define MANY 100000 /* products that are worth a second thread */

void NAMED(few_rows)(const number *x, const number *weight, const number *bias, number *y, size n, size d, size o) {
#pragma omp parallel for if (n * d * o > MANY)
  for (size first = 0; first < o; first += COLUMNS) {
    size columns = first + COLUMNS < o ? COLUMNS : o - first;
    for (size top = 0; top < n; top += ROWS) {
      size rows = top + ROWS < n ? ROWS : n - top;
      const number *from[ROWS];
      float found[COLUMNS * ROWS];
      for (size r = 0; r < rows; r++) from[r] = x + (top + r) * d;
      products(from, rows, weight + first * d, columns, d, found);
      for (size r = 0; r < rows; r++)
        for (size c = 0; c < columns; c++)
          y[(top + r) * o + first + c] = narrow(found[c * ROWS + r] + (bias ? wide(bias[first + c]) : 0));
    }
  }
}
