/* Rows of numbers times rows of weights, summed in float32: what a product is made of when it has so few rows that reading
   the weights takes the time.

   Where the processor multiplies pairs of bfloat16 by itself, they are not widened first; elsewhere a word's two halves are
   taken apart, without moving a number to another lane. A weight's row is read alone for one or two rows, since the memory
   is fastest in one stream; four are read together, and asked for in advance, when there are more rows (MANY_ROWS), and
   always in 4 bits, which the memory does not bound.

   A `weight` is a number, or a code of 8 or 4 bits, which stands for code * scale: INT8 has a scale (bfloat16) for each row;
   INT4 one for each GROUP of a row, codes 0..15 around 8, a byte j of a group holding its codes j (low bits) and j + 16.
   Scales of numbers are NULL. Codes are taken where the processor multiplies bytes by bytes alone (codes.h); what is `given`
   to multiply them with are blocks made of the numbers, otherwise the numbers themselves. */
#ifndef PRODUCTS_H
#define PRODUCTS_H
#ifdef __AVX512F__
#define LANES 16
#endif
#include "lanes.h"

enum { ROWS = 4, COLUMNS = 4, SIDES = 2, AHEAD = 4096 };

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
static inline operand take_rest(const number *from, size n) {
  return (operand)_mm512_maskz_loadu_epi16(((__mmask32)1 << n) - 1, from);
}
static inline sums add(sums so_far, operand a, operand b) { return _mm512_dpbf16_ps(so_far, a, b); }
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
#else
enum { STEP = LANES };
typedef lanes sums, operand;
static inline sums nothing(void) { return all(0); }
static inline operand take(const number *from) { return get(from); }
static inline sums add(sums so_far, operand a, operand b) { return so_far + a * b; }
#endif
#ifndef PAIRS
/* The last n numbers, too few to fill a step, and zeros. */
static inline operand take_rest(const number *from, size n) {
  number rest[STEP] = {0};
  for (size i = 0; i < n; i++) rest[i] = from[i];
  return take(rest);
}
#endif

/* A block's sums of lanes to its products: found[r * COLUMNS + c] is the whole of so_far[c][r]. */
#ifdef PAIRS
/* In every four lanes a quarter of each of four sums. */
static inline sums quarters(sums a, sums b, sums c, sums d) {
  __m512d ab = (__m512d)(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b));
  __m512d cd = (__m512d)(_mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d));
  return (sums)_mm512_unpacklo_pd(ab, cd) + (sums)_mm512_unpackhi_pd(ab, cd);
}

/* Neighbours of four lanes each, added: those of a, then those of b. */
static inline sums halves(sums a, sums b) {
  return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xDD);
}

static inline __attribute__((always_inline)) void wholes(sums so_far[COLUMNS][ROWS], float *found, const int rows) {
  sums each[ROWS];
  for (int i = 0; i < ROWS; i++) {
    int r = i < rows ? i : 0;
    each[i] = quarters(so_far[0][r], so_far[1][r], so_far[2][r], so_far[3][r]);
  }
  _mm512_storeu_ps(found, halves(halves(each[0], each[1]), halves(each[2], each[3])));
}
#else
static inline __attribute__((always_inline)) void wholes(sums so_far[COLUMNS][ROWS], float *found, const int rows) {
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < COLUMNS; c++) found[r * COLUMNS + c] = sum(so_far[c][r]);
}
#endif

/* What the rows of x are given as: `given_room` has place for them, where `prepare` puts a row (n numbers); numbers are
   given as they lie. Two forms of `alone`, `together` and `scaled`: */
#ifdef CODES
#include "codes.h"
#else
typedef number weight, given;
enum { PER_BYTE = 1, GROUP = 0, MANY_ROWS = 3 };
static inline size given_of(size n) { return n; }
static inline given *given_room(const number *x, size rows, size n) {
  (void)rows, (void)n;
  return (given *)x;
}
static inline void prepare(const number *x, size n, given *to) { (void)x, (void)n, (void)to; }
static inline void free_given(given *rows) { (void)rows; }

/* The sums of x[r] . w, lane by lane. */
static inline __attribute__((always_inline)) void alone(const given *const *x, const weight *w, const number *scales, size n,
                                                       sums *so_far, const int rows) {
  (void)scales;
  sums parts[4][ROWS];
  for (int part = 0; part < 4; part++)
    for (int r = 0; r < rows; r++) parts[part][r] = nothing();
  size i = 0;
  for (; i + 4 * STEP <= n; i += 4 * STEP)
    for (int part = 0; part < 4; part++) {
      operand weights = take(w + i + part * STEP);
      for (int r = 0; r < rows; r++) parts[part][r] = add(parts[part][r], take(x[r] + i + part * STEP), weights);
    }
  for (; i + STEP <= n; i += STEP) {
    operand weights = take(w + i);
    for (int r = 0; r < rows; r++) parts[0][r] = add(parts[0][r], take(x[r] + i), weights);
  }
  if (i < n) {
    operand weights = take_rest(w + i, n - i);
    for (int r = 0; r < rows; r++) parts[1][r] = add(parts[1][r], take_rest(x[r] + i, n - i), weights);
  }
  for (int r = 0; r < rows; r++) so_far[r] = (parts[0][r] + parts[1][r]) + (parts[2][r] + parts[3][r]);
}

/* The same of COLUMNS columns w[c]. */
static inline __attribute__((always_inline)) void together(const given *const *x, const weight *const *w,
                                                          const number *const *scales, size n,
                                                          sums so_far[COLUMNS][ROWS], const int rows) {
  (void)scales;
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
  for (int c = 0; i < n && c < COLUMNS; c++) {
    operand weights = take_rest(w[c] + i, n - i);
    for (int r = 0; r < rows; r++) so_far[c][r] = add(so_far[c][r], take_rest(x[r] + i, n - i), weights);
  }
}

static inline void scaled(float *found, const number *const *scales) { (void)found, (void)scales; }
#endif

static inline __attribute__((always_inline)) void block_of(const given *const *x, const weight *const *w,
                                                          const number *const *scales, size n, float *found,
                                                          const int rows) {
  sums so_far[COLUMNS][ROWS];
  if (rows >= MANY_ROWS)
    together(x, w, scales, n, so_far, rows);
  else
    for (int c = 0; c < COLUMNS; c++) alone(x, w[c], scales[c], n, so_far[c], rows);
  wholes(so_far, found, rows);
  scaled(found, scales);
}

/* found[r * COLUMNS + c] = x[r] . w[c], for up to ROWS rows and COLUMNS columns of n numbers; further rows are not filled, or
   with anything. */
static inline void block(const given *const *x, size rows, const weight *const *w, const number *const *scales, size n,
                         float *found) {
  if (rows == 4)
    block_of(x, w, scales, n, found, 4);
  else if (rows == 3)
    block_of(x, w, scales, n, found, 3);
  else if (rows == 2)
    block_of(x, w, scales, n, found, 2);
  else
    block_of(x, w, scales, n, found, 1);
}

/* found[r * COLUMNS + c] = x[r] . row first + c of w, for up to ROWS rows; beyond `columns` the last one again. */
static inline void products(const given *const *x, size rows, const weight *w, const number *scales, size first,
                            size columns, size n, float *found) {
  const weight *each[COLUMNS];
  const number *of_each[COLUMNS];
  for (size c = 0; c < COLUMNS; c++) {
    size row = first + (c < columns ? c : columns - 1);
    each[c] = w + row * n / PER_BYTE;
    of_each[c] = scales ? scales + (GROUP ? row * n / GROUP : row) : NULL;
  }
  block(x, rows, each, of_each, n, found);
}

/* The first `columns` of each row of a block to where it belongs. */
static inline void put_block(const float *found, size rows, size columns, number *const *to) {
  number rounded[ROWS * COLUMNS];
  for (int i = 0; i < ROWS * COLUMNS; i += LANES) put(rounded + i, load(found + i));
  for (size r = 0; r < rows; r++)
    if (columns == COLUMNS)
      memcpy(to[r], rounded + r * COLUMNS, COLUMNS * sizeof(number));
    else
      for (size c = 0; c < columns; c++) to[r][c] = rounded[r * COLUMNS + c];
}
#endif
#endif
