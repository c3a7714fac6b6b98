/* y = x W^T + b for few rows of x: each weight is read once from memory, where it lies. Threads divide the rows of W, so
   that they change no bit.

   Shapes: x (n, d), W (o, d) and its scales (products.h), b (o) or NULL, y (n, o); contiguous. */
#include "products.h"
#ifndef LACKS_FORM

#define MANY 100000 /* products that are worth a second thread */

#ifdef CODES
/* What the codes stand for, rounded to bfloat16: y (o, d). */
void NAMED(widen)(number *y, const weight *matrix, const number *scales, size o, size d) {
#pragma omp parallel for if (o * d > MANY)
  for (size i = 0; i < o; i++) {
    number *to = y + i * d;
    widen_row(to, matrix + i * d / PER_BYTE, scales + (i * d / (GROUP ? GROUP : d)), d);
    for (size j = 0; !GROUP && j < d; j++) to[j] = narrow(wide(to[j]) * wide(scales[i]));
  }
}
#endif

/* Returns 0, or 1 when memory is short. */
int NAMED(few_rows)(const number *x, const weight *matrix, const number *scales, const number *bias, number *y, size n,
                    size d, size o) {
  given *rows_of_x = given_room(x, n, d);
  if (n && !rows_of_x) return 1;
  for (size i = 0; i < n; i++) prepare(x + i * d, d, rows_of_x + i * given_of(d));
#pragma omp parallel for if (n * d * o > MANY)
  for (size first = 0; first < o; first += COLUMNS) {
    size columns = first + COLUMNS < o ? COLUMNS : o - first;
    for (size top = 0; top < n; top += ROWS) {
      size rows = top + ROWS < n ? ROWS : n - top;
      const given *from[ROWS];
      number *to[ROWS];
      float found[COLUMNS * ROWS] = {0};
      for (size r = 0; r < rows; r++) {
        from[r] = rows_of_x + (top + r) * given_of(d);
        to[r] = y + (top + r) * o + first;
      }
      products(from, rows, matrix, scales, first, columns, d, found);
      for (size r = 0; bias && r < rows; r++)
        for (size c = 0; c < columns; c++) found[r * COLUMNS + c] += wide(bias[first + c]);
      put_block(found, rows, columns, to);
    }
  }
  free_given(rows_of_x);
  return 0;
}
#endif
