/* Rows of numbers times rows of weights, summed in float32: what a product is made of when it has so few rows that reading
   the weights takes the time.

   Where the processor multiplies pairs of bfloat16 by itself, STEP of them are not widened first. A weight's row is read
   alone for one or two rows, since the memory is fastest in one stream; four are read together, and asked for in advance,
   when there are more rows. */
#ifndef PRODUCTS_H
#define PRODUCTS_H
#include "lanes.h"

enum { ROWS = 4, COLUMNS = 4, AHEAD = 4096 };

#if defined(BFLOAT16) && defined(__AVX512BF16__)
enum { STEP = 32 };
typedef __m512 sums;
typedef __m512bh operand;
static inline sums nothing(void) { return _mm512_setzero_ps(); }
static inline operand take(const number *from) { return (operand)_mm512_loadu_si512(from); }
static inline sums add(sums so_far, operand a, operand b) { return _mm512_dpbf16_ps(so_far, a, b); }
static inline float whole(sums x) { return _mm512_reduce_add_ps(x); }
#else
enum { STEP = LANES };
typedef lanes sums, operand;
static inline sums nothing(void) { return all(0); }
static inline operand take(const number *from) { return get(from); }
static inline sums add(sums so_far, operand a, operand b) { return so_far + a * b; }
static inline float whole(sums x) { return sum(x); }
#endif

static inline float rest_of(const number *x, const number *w, size from, size n) {
  float total = 0;
  for (size i = from; i < n; i++) total += wide(x[i]) * wide(w[i]);
  return total;
}

/* found[r] = x[r] . w, over n numbers. */
static inline __attribute__((always_inline)) void one_column(const number *const *x, const number *w, size n, float *found,
                                                            const int rows) {
  sums so_far[2][4];
  for (int r = 0; r < rows; r++)
    for (int part = 0; part < 4; part++) so_far[r][part] = nothing();
  size i = 0;
  for (; i + 4 * STEP <= n; i += 4 * STEP)
    for (int part = 0; part < 4; part++) {
      operand weights = take(w + i + part * STEP);
      for (int r = 0; r < rows; r++) so_far[r][part] = add(so_far[r][part], take(x[r] + i + part * STEP), weights);
    }
  for (; i + STEP <= n; i += STEP)
    for (int r = 0; r < rows; r++) so_far[r][0] = add(so_far[r][0], take(x[r] + i), take(w + i));
  for (int r = 0; r < rows; r++)
    found[r] = whole((so_far[r][0] + so_far[r][1]) + (so_far[r][2] + so_far[r][3])) + rest_of(x[r], w, i, n);
}

/* found[c * ROWS + r] = x[r] . w[c]. */
static inline __attribute__((always_inline)) void four_columns(const number *const *x, const number *const *w, size n,
                                                              float *found, const int rows) {
  sums so_far[COLUMNS][ROWS];
  for (int c = 0; c < COLUMNS; c++)
    for (int r = 0; r < rows; r++) so_far[c][r] = nothing();
  size i = 0;
  for (; i + STEP <= n; i += STEP) {
    operand weights[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) {
      weights[c] = take(w[c] + i);
      __builtin_prefetch(w[c] + i + AHEAD);
    }
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < COLUMNS; c++) so_far[c][r] = add(so_far[c][r], take(x[r] + i), weights[c]);
  }
  for (int c = 0; c < COLUMNS; c++)
    for (int r = 0; r < rows; r++) found[c * ROWS + r] = whole(so_far[c][r]) + rest_of(x[r], w[c], i, n);
}

/* found[c * ROWS + r] = x[r] . row c of w, for up to ROWS rows and up to COLUMNS columns of n numbers. */
static inline void products(const number *const *x, size rows, const number *w, size columns, size n, float *found) {
  const number *each[COLUMNS];
  for (size c = 0; c < COLUMNS; c++) each[c] = w + (c < columns ? c : columns - 1) * n;
  if (rows == 4)
    four_columns(x, each, n, found, 4);
  else if (rows == 3)
    four_columns(x, each, n, found, 3);
  else
    for (size c = 0; c < columns; c++)
      if (rows == 2)
        one_column(x, each[c], n, found + c * ROWS, 2);
      else
        one_column(x, each[c], n, found + c * ROWS, 1);
}
#endif
