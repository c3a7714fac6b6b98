/* Eight float lanes in one register, as gcc and clang both spell them, and what the other pages need of them.

   Pages about activations are compiled twice, for the `number` that lies in memory: float, or bfloat16 when
   BFLOAT16 is defined. Registers always hold floats; `get` and `put` widen and round to nearest even. Pages that read
   weights have two more forms, for INT8 and INT4 weights beside bfloat16 activations (products.h).

   Loads and stores take any address. exp is 2^n times a polynomial on [-ln2/2, ln2/2] (Cody and Waite's reduction, the
   degree that leaves float32's rounding); below -87 it is 0, and NaN stays NaN. */
#ifndef LANES_H
#define LANES_H
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
#include <immintrin.h>
#endif

#define LANES 8
typedef float lanes __attribute__((vector_size(32)));
typedef int32_t ints __attribute__((vector_size(32)));
typedef uint32_t words __attribute__((vector_size(32)));
typedef uint16_t shorts __attribute__((vector_size(16)));
typedef long size;

#ifdef BFLOAT16
typedef uint16_t number;
#if defined(INT8)
#define NAMED(name) name##_int8_bfloat16
#elif defined(INT4)
#define NAMED(name) name##_int4_bfloat16
#else
#define NAMED(name) name##_bfloat16
#endif
#else
typedef float number;
#define NAMED(name) name
#endif

static inline lanes load(const float *from) {
  lanes x;
  memcpy(&x, from, sizeof x);
  return x;
}

static inline void store(float *to, lanes x) { memcpy(to, &x, sizeof x); }

static inline lanes all(float x) { return (lanes){x, x, x, x, x, x, x, x}; }

static inline lanes where(ints mask, lanes yes, lanes no) { return (lanes)((mask & (ints)yes) | (~mask & (ints)no)); }

#ifdef BFLOAT16
static inline lanes get(const number *from) {
  shorts x;
  memcpy(&x, from, sizeof x);
  return (lanes)(__builtin_convertvector(x, words) << 16);
}

static inline void put(number *to, lanes x) {
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
  __m128bh rounded = _mm256_cvtneps_pbh((__m256)x);
#else
  words bits = (words)x;
  bits = (words)where(x != x, (lanes)(bits | 0x400000), (lanes)(bits + 0x7FFF + (bits >> 16 & 1))); /* a NaN stays one */
  shorts rounded = __builtin_convertvector(bits >> 16, shorts);
#endif
  memcpy(to, &rounded, sizeof rounded);
}

static inline float wide(number x) {
  uint32_t bits = (uint32_t)x << 16;
  float found;
  memcpy(&found, &bits, sizeof found);
  return found;
}

static inline number narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return (number)((x != x ? bits | 0x400000 : bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
#else
static inline lanes get(const number *from) { return load(from); }

static inline void put(number *to, lanes x) { store(to, x); }

static inline float wide(number x) { return x; }

static inline number narrow(float x) { return x; }
#endif

/* What one step of a sum takes from each side: a float, or two of bfloat16 side by side, for which AVX-512 has an
   instruction (`multiply` without it is right and slow). */
#ifdef BFLOAT16
enum { PAIR = 2 };
typedef uint32_t pair;
typedef words pairs;

static inline pairs both(lanes low, lanes high) {
  number lows[LANES], highs[LANES];
  shorts x, y;
  put(lows, low);
  put(highs, high);
  memcpy(&x, lows, sizeof x);
  memcpy(&y, highs, sizeof y);
  return __builtin_convertvector(x, words) | __builtin_convertvector(y, words) << 16;
}

static inline lanes multiply(lanes sums, pair a, pairs b) {
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
  return (lanes)_mm256_dpbf16_ps((__m256)sums, (__m256bh)_mm256_set1_epi32((int)a), (__m256bh)b);
#else
  words left = {a, a, a, a, a, a, a, a};
  return sums + (lanes)(left << 16) * (lanes)(b << 16) + (lanes)(left & 0xFFFF0000) * (lanes)(b & 0xFFFF0000);
#endif
}
#else
enum { PAIR = 1 };
typedef float pair;
typedef lanes pairs;

static inline pairs both(lanes low, lanes high) {
  (void)high;
  return low;
}

static inline lanes multiply(lanes sums, pair a, pairs b) { return sums + a * b; }
#endif

static inline pairs load_pairs(const pair *from) {
  pairs x;
  memcpy(&x, from, sizeof x);
  return x;
}

static inline void store_pairs(pair *to, pairs x) { memcpy(to, &x, sizeof x); }

typedef float half __attribute__((vector_size(16)));

static inline float sum(lanes x) {
  half low, high;
  memcpy(&low, &x, sizeof low);
  memcpy(&high, (const char *)&x + sizeof low, sizeof high);
  low += high;
  return (low[0] + low[2]) + (low[1] + low[3]);
}

static inline lanes larger(lanes a, lanes b) { return where(a > b, a, b); }

static inline float largest(lanes x) {
  float found = x[0];
  for (int i = 1; i < LANES; i++) found = x[i] > found ? x[i] : found;
  return found;
}

static inline lanes exponential(lanes x) {
  ints tiny = x < -87.0f;
  lanes bounded = where(x > 88.0f, all(88.0f), where(tiny, all(0.0f), x));
  lanes shifted = bounded * 1.44269504f + 12582912.0f; /* rounds to an integer, kept in the low bits */
  lanes n = shifted - 12582912.0f;
  lanes f = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  lanes p = all(1.0f / 5040);
  p = p * f + 1.0f / 720;
  p = p * f + 1.0f / 120;
  p = p * f + 1.0f / 24;
  p = p * f + 1.0f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  ints power = ((ints)shifted - 0x4B400000 + 127) << 23;
  return where(tiny, all(0.0f), p * (lanes)power);
}

/* Scores of a row, `valid` of them and room up to `end` (a multiple of LANES), to e^(score - top), 0 beyond the valid ones.
   Returns top; `total` becomes their sum. */
static inline float weigh(float *row, size valid, size end, float *total) {
  for (size s = valid; s < end; s++) row[s] = -INFINITY;
  lanes tops = all(-INFINITY), sums = all(0);
  for (size s = 0; s < end; s += LANES) tops = larger(load(row + s), tops);
  float top = largest(tops);
  for (size s = 0; s < end; s += LANES) {
    lanes e = exponential(load(row + s) - top);
    sums += e;
    store(row + s, e);
  }
  *total = sum(sums);
  return top;
}

static inline size rounded(size n, size unit) { return (n + unit - 1) / unit * unit; }

/* Zeroed memory that begins at a cache line; NULL when there is none. */
static inline float *room(size n) {
  void *found = NULL;
  size bytes = rounded(n * (size)sizeof(float), 64);
  if (posix_memalign(&found, 64, (size_t)bytes)) return NULL;
  memset(found, 0, (size_t)bytes);
  return found;
}
#endif
