/* Rows of numbers times rows of weights, summed in float32: what a product is made of when it has so few rows that reading
   the weights takes the time.

   Where the processor multiplies pairs of bfloat16 by itself, they are not widened first; elsewhere a word's two halves are
   taken apart, without moving a number to another lane. A weight's row is read alone for one or two rows, since the memory
   is fastest in one stream; four are read together, and asked for in advance, when there are more rows.

   A `weight` is a number, or a code of 8 or 4 bits, which stands for code * scale: INT8 has a scale (bfloat16) for each row;
   INT4 one for each GROUP of a row, codes 0..15 around 8, a byte j of a group holding its codes j (low bits) and j + 16.
   Scales of numbers are NULL. Codes are taken where the processor multiplies bytes by bytes alone (codes.h); what is `given`
   to multiply them with are blocks made of the numbers, otherwise the numbers themselves. */
#ifndef PRODUCTS_H
#define PRODUCTS_H
#include "lanes.h"

enum { ROWS = 4, COLUMNS = 4, AHEAD = 4096 };

#if defined(BFLOAT16) && defined(__AVX512BF16__) && defined(__AVX512BW__)
#define PAIRS
#endif
#if defined(INT8) || defined(INT4)
#if defined(PAIRS) && defined(__AVX512VNNI__)
#define CODES
#else
#define LACKS_FORM
#endif
#endif

#ifndef LACKS_FORM
#ifdef PAIRS
enum { STEP = 32 };
typedef __m512 sums;
typedef __m512bh operand;
static inline sums nothing(void) { return _mm512_setzero_ps(); }
static inline operand take(const number *from) { return (operand)_mm512_loadu_si512(from); }
static inline sums add(sums so_far, operand a, operand b) { return _mm512_dpbf16_ps(so_far, a, b); }
static inline float whole(sums x) { return _mm512_reduce_add_ps(x); }
static inline void keep(number *to, operand x) { _mm512_storeu_si512(to, (__m512i)x); }
#elif defined(BFLOAT16)
enum { STEP = 2 * LANES };
typedef lanes sums;
typedef struct {
  lanes even, odd;
} operand;
static inline sums nothing(void) { return all(0); }
static inline operand take(const number *from) {
  words pairs;
  memcpy(&pairs, from, sizeof pairs);
  return (operand){(lanes)(pairs << 16), (lanes)(pairs & 0xFFFF0000)};
}
static inline sums add(sums so_far, operand a, operand b) { return so_far + a.even * b.even + a.odd * b.odd; }
static inline float whole(sums x) { return sum(x); }
#else
enum { STEP = LANES };
typedef lanes sums, operand;
static inline sums nothing(void) { return all(0); }
static inline operand take(const number *from) { return get(from); }
static inline sums add(sums so_far, operand a, operand b) { return so_far + a * b; }
static inline float whole(sums x) { return sum(x); }
#endif

/* What the rows of x are given as: `given_room` has place for them, where `prepare` puts a row (n numbers); numbers are
   given as they lie. Two forms of `one_column` and `four_columns`: */
#ifdef CODES
#include "codes.h"
#else
typedef number weight, given;
enum { PER_BYTE = 1, GROUP = 0 };
static inline size given_of(size n) { return n; }
static inline given *given_room(const number *x, size rows, size n) {
  (void)rows, (void)n;
  return (given *)x;
}
static inline void prepare(const number *x, size n, given *to) { (void)x, (void)n, (void)to; }
static inline void free_given(given *rows) { (void)rows; }

/* The products that fill no step: there are none of groups. */
static inline float rest_of(const number *x, const weight *w, size from, size n) {
  float total = 0;
  for (size i = from; i < n; i++) total += wide(x[i]) * wide(w[i]);
  return total;
}

/* found[r] = x[r] . w, over n numbers. */
static inline __attribute__((always_inline)) void one_column(const given *const *x, const weight *w, const number *scales,
                                                            size n, float *found, const int rows) {
  (void)scales;
  sums so_far[2][4];
  for (int r = 0; r < rows; r++)
    for (int part = 0; part < 4; part++) so_far[r][part] = nothing();
  size i = 0;
  for (; i + 4 * STEP <= n; i += 4 * STEP)
    for (int part = 0; part < 4; part++) {
      operand weights = take(w + i + part * STEP);
      for (int r = 0; r < rows; r++) so_far[r][part] = add(so_far[r][part], take(x[r] + i + part * STEP), weights);
    }
  for (; i + STEP <= n; i += STEP) {
    operand weights = take(w + i);
    for (int r = 0; r < rows; r++) so_far[r][0] = add(so_far[r][0], take(x[r] + i), weights);
  }
  for (int r = 0; r < rows; r++) {
    float total = whole((so_far[r][0] + so_far[r][1]) + (so_far[r][2] + so_far[r][3]));
    found[r] = total + rest_of(x[r], w, i, n);
  }
}

/* found[c * ROWS + r] = x[r] . w[c]. */
static inline __attribute__((always_inline)) void four_columns(const given *const *x, const weight *const *w,
                                                              const number *const *scales, size n, float *found,
                                                              const int rows) {
  (void)scales;
  sums so_far[COLUMNS][ROWS];
  for (int c = 0; c < COLUMNS; c++)
    for (int r = 0; r < rows; r++) so_far[c][r] = nothing();
  size i = 0;
  for (; i + STEP <= n; i += STEP) {
    operand weights[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) {
      weights[c] = take(w[c] + i);
      __builtin_prefetch(w[c] + i / PER_BYTE + AHEAD);
    }
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < COLUMNS; c++) so_far[c][r] = add(so_far[c][r], take(x[r] + i), weights[c]);
  }
  for (int c = 0; c < COLUMNS; c++)
    for (int r = 0; r < rows; r++) found[c * ROWS + r] = whole(so_far[c][r]) + rest_of(x[r], w[c], i, n);
}
#endif

/* found[c * ROWS + r] = x[r] . row first + c of w, for up to ROWS rows and up to COLUMNS columns of n numbers. */
static inline void products(const given *const *x, size rows, const weight *w, const number *scales, size first,
                            size columns, size n, float *found) {
  const weight *each[COLUMNS];
  const number *of_each[COLUMNS];
  for (size c = 0; c < COLUMNS; c++) {
    size row = first + (c < columns ? c : columns - 1);
    each[c] = w + row * n / PER_BYTE;
    of_each[c] = scales ? scales + (GROUP ? row * n / GROUP : row) : NULL;
  }
  if (rows == 4)
    four_columns(x, each, of_each, n, found, 4);
  else if (rows == 3)
    four_columns(x, each, of_each, n, found, 3);
  else
    for (size c = 0; c < columns; c++)
      if (rows == 2)
        one_column(x, each[c], of_each[c], n, found + c * ROWS, 2);
      else
        one_column(x, each[c], of_each[c], n, found + c * ROWS, 1);
}
#endif
#endif
