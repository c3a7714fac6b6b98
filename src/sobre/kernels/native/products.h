/* Rows of numbers times rows of weights, summed in float32: what a product is made of when it has so few rows that reading
   the weights takes the time.

   Where the processor multiplies pairs of bfloat16 by itself, they are not widened first; elsewhere a word's two halves are
   taken apart, without moving a number to another lane. A weight's row is read alone for one or two rows, since the memory
   is fastest in one stream; four are read together, and asked for in advance, when there are more rows.

   A `weight` is a number, or a code of 8 or 4 bits, which is widened in registers and stands for code * scale: INT8 has a
   scale (bfloat16) for each row; INT4 one for each GROUP of a row, codes 0..15 around 8, a byte j of a group holding its
   codes j (low bits) and j + 16. Scales of numbers are NULL. Codes are taken where there are products of pairs alone. */
#ifndef PRODUCTS_H
#define PRODUCTS_H
#include "lanes.h"

enum { ROWS = 4, COLUMNS = 4, AHEAD = 4096 };

#if defined(BFLOAT16) && defined(__AVX512BF16__) && defined(__AVX512BW__)
#define PAIRS
#elif defined(INT8) || defined(INT4)
#define LACKS_FORM /* codes are widened to pairs of bfloat16 */
#endif

#ifndef LACKS_FORM
#if defined(INT8)
typedef int8_t weight;
enum { PER_BYTE = 1, GROUP = 0 };
#elif defined(INT4)
typedef uint8_t weight;
enum { PER_BYTE = 2, GROUP = 32 };
#else
typedef number weight;
enum { PER_BYTE = 1, GROUP = 0 };
#endif

#ifdef PAIRS
enum { STEP = 32 };
typedef __m512 sums;
typedef __m512bh operand;
static inline sums nothing(void) { return _mm512_setzero_ps(); }
static inline operand take(const number *from) { return (operand)_mm512_loadu_si512(from); }
static inline sums add(sums so_far, operand a, operand b) { return _mm512_dpbf16_ps(so_far, a, b); }
static inline float whole(sums x) { return _mm512_reduce_add_ps(x); }
static inline void keep(number *to, operand x) { _mm512_storeu_si512(to, (__m512i)x); }
#if defined(INT8)
static inline operand weights_at(const weight *row, const number *scales, size i) {
  (void)scales;
  __m256i codes = _mm256_loadu_si256((const void *)(row + i));
  __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(codes)));
  __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(codes, 1)));
  return _mm512_cvtne2ps_pbh(high, low); /* exact: a code has 7 bits */
}
#elif defined(INT4)
static inline operand weights_at(const weight *row, const number *scales, size i) {
  const __m512 values = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
  __m256i table = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(values, _mm512_set1_ps(wide(scales[i / GROUP]))));
  __m128i bytes = _mm_loadu_si128((const void *)(row + i / 2)), mask = _mm_set1_epi8(15);
  __m256i codes = _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask), _mm_and_si128(bytes, mask));
  return (operand)_mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(codes), _mm512_castsi256_si512(table));
}
#endif
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

#if defined(INT8) || defined(INT4)
/* What multiplies a sum at its end. */
static inline float factor(const number *scales) { return GROUP ? 1 : wide(scales[0]); }
static inline float widened(weight code) { return code; }
/* A row of codes as numbers: exact in 8 bits, times their scales in 4. */
static inline void widen_row(number *to, const weight *row, const number *scales, size n) {
  size i = 0;
  for (; i + STEP <= n; i += STEP) keep(to + i, weights_at(row, scales, i));
  for (; i < n; i++) to[i] = narrow(widened(row[i]));
}
#else
static inline operand weights_at(const weight *row, const number *scales, size i) {
  (void)scales;
  return take(row + i);
}
static inline float factor(const number *scales) {
  (void)scales;
  return 1;
}
static inline float widened(weight x) { return wide(x); }
#endif

/* The products that fill no step: there are none of groups. */
static inline float rest_of(const number *x, const weight *w, size from, size n) {
  float total = 0;
  for (size i = from; i < n; i++) total += wide(x[i]) * widened(w[i]);
  return total;
}

/* found[r] = x[r] . w, over n numbers. */
static inline __attribute__((always_inline)) void one_column(const number *const *x, const weight *w, const number *scales,
                                                            size n, float *found, const int rows) {
  sums so_far[2][4];
  for (int r = 0; r < rows; r++)
    for (int part = 0; part < 4; part++) so_far[r][part] = nothing();
  size i = 0;
  for (; i + 4 * STEP <= n; i += 4 * STEP)
    for (int part = 0; part < 4; part++) {
      operand weights = weights_at(w, scales, i + part * STEP);
      for (int r = 0; r < rows; r++) so_far[r][part] = add(so_far[r][part], take(x[r] + i + part * STEP), weights);
    }
  for (; i + STEP <= n; i += STEP) {
    operand weights = weights_at(w, scales, i);
    for (int r = 0; r < rows; r++) so_far[r][0] = add(so_far[r][0], take(x[r] + i), weights);
  }
  for (int r = 0; r < rows; r++) {
    float total = whole((so_far[r][0] + so_far[r][1]) + (so_far[r][2] + so_far[r][3]));
    found[r] = (total + rest_of(x[r], w, i, n)) * factor(scales);
  }
}

/* found[c * ROWS + r] = x[r] . w[c]. */
static inline __attribute__((always_inline)) void four_columns(const number *const *x, const weight *const *w,
                                                              const number *const *scales, size n, float *found,
                                                              const int rows) {
  sums so_far[COLUMNS][ROWS];
  for (int c = 0; c < COLUMNS; c++)
    for (int r = 0; r < rows; r++) so_far[c][r] = nothing();
  size i = 0;
  for (; i + STEP <= n; i += STEP) {
    operand weights[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) {
      weights[c] = weights_at(w[c], scales[c], i);
      __builtin_prefetch(w[c] + i / PER_BYTE + AHEAD);
    }
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < COLUMNS; c++) so_far[c][r] = add(so_far[c][r], take(x[r] + i), weights[c]);
  }
  for (int c = 0; c < COLUMNS; c++)
    for (int r = 0; r < rows; r++)
      found[c * ROWS + r] = (whole(so_far[c][r]) + rest_of(x[r], w[c], i, n)) * factor(scales[c]);
}

/* found[c * ROWS + r] = x[r] . row first + c of w, for up to ROWS rows and up to COLUMNS columns of n numbers. */
static inline void products(const number *const *x, size rows, const weight *w, const number *scales, size first,
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
