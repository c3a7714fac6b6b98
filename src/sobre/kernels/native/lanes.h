/* Float lanes in one register, as gcc and clang both spell them, and what the other pages need of them: eight, or the
   sixteen of AVX-512 where a page says so before this one.

   Pages about activations are compiled twice, for the `number` that lies in memory: float, or bfloat16 when
   BFLOAT16 is defined. Registers always hold floats; `get` and `put` widen and round to nearest even. Pages that read
   weights have two more forms, for INT8 and INT4 weights beside bfloat16 activations (products.h).

   Loads and stores take any address. exp is a power of two: 2^n times a polynomial on [-1/2, 1/2], of those of degree 6 that
   are 1 at 0 the one whose largest relative error is least (2e-9; float32's rounding is 6e-8). Below 2^-126 it is 0 (below
   2^-150 where the processor scales by itself, which makes the numbers in between, too), above 2^126 it is that, and NaN
   stays NaN. */
#ifndef LANES_H
#define LANES_H
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__) && defined(__AVX512VL__)
#include <immintrin.h>
#define SCALES
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define ROUNDS
#endif
#endif

#ifndef LANES
#define LANES 8
#endif
typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES)));
typedef long size;

#ifdef SCALES
#if LANES == 16
#define OF_LANES(name) _mm512_##name
#define ROUND_LANES _mm512_roundscale_ps
typedef __m512bh pairs_of_lanes;
typedef __m512i register_of_lanes;
typedef __m256i half_of_lanes;
#else
#define OF_LANES(name) _mm256_##name
#define ROUND_LANES _mm256_roundscale_ps
typedef __m256bh pairs_of_lanes;
typedef __m256i register_of_lanes;
typedef __m128i half_of_lanes;
#endif
#endif

#ifdef BFLOAT16
typedef uint16_t number;
#if defined(INT8)
#define NAMED(name) name##_int8_bfloat16
#elif defined(INT4)
#define NAMED(name) name##_int4_bfloat16
#else
#define NAMED(name) name##_bfloat16
#endif
#define PLAIN(name) name##_bfloat16 /* the form without codes */
#else
typedef float number;
#define NAMED(name) name
#define PLAIN(name) name
#endif

static inline lanes load(const float *from) {
  lanes x;
  memcpy(&x, from, sizeof x);
  return x;
}

static inline void store(float *to, lanes x) { memcpy(to, &x, sizeof x); }

static inline lanes all(float x) { return x - (lanes){0}; }

static inline lanes where(ints mask, lanes yes, lanes no) { return (lanes)((mask & (ints)yes) | (~mask & (ints)no)); }

#ifdef BFLOAT16
static inline words widen(shorts x) {
#ifdef SCALES
  return (words)OF_LANES(cvtepu16_epi32)((half_of_lanes)x); /* one instruction, of which compilers make four */
#else
  return __builtin_convertvector(x, words);
#endif
}

static inline shorts load_shorts(const number *from) {
  shorts x;
  memcpy(&x, from, sizeof x);
  return x;
}

static inline lanes get(const number *from) { return (lanes)(widen(load_shorts(from)) << 16); }

static inline shorts round_lanes(lanes x) {
#ifdef ROUNDS
  return (shorts)OF_LANES(cvtneps_pbh)(x);
#else
  words bits = (words)x;
  bits = (words)where(x != x, (lanes)(bits | 0x400000), (lanes)(bits + 0x7FFF + (bits >> 16 & 1))); /* a NaN stays one */
  return __builtin_convertvector(bits >> 16, shorts);
#endif
}

static inline void put(number *to, lanes x) {
  shorts rounded = round_lanes(x);
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

static inline pairs side_by_side(shorts low, shorts high) { return widen(low) | widen(high) << 16; }

static inline pairs both(lanes low, lanes high) {
#ifdef ROUNDS
  uint16_t order[2 * LANES];
  register_of_lanes places;
  for (int i = 0; i < LANES; i++) order[2 * i] = (uint16_t)i, order[2 * i + 1] = (uint16_t)(LANES + i);
  memcpy(&places, order, sizeof places);
  return (pairs)OF_LANES(permutexvar_epi16)(places, (register_of_lanes)OF_LANES(cvtne2ps_pbh)(high, low));
#else
  return side_by_side(round_lanes(low), round_lanes(high));
#endif
}

static inline lanes multiply(lanes sums, pair a, pairs b) {
#ifdef ROUNDS
  return OF_LANES(dpbf16_ps)(sums, (pairs_of_lanes)OF_LANES(set1_epi32)((int)a), (pairs_of_lanes)b);
#else
  words left = a - (words){0};
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

/* x + y into x. */
static inline void add_rows(number *x, const number *y, size n) {
  size i = 0;
  for (; i + LANES <= n; i += LANES) put(x + i, get(x + i) + get(y + i));
  for (; i < n; i++) x[i] = narrow(wide(x[i]) + wide(y[i]));
}

typedef float half __attribute__((vector_size(16)));

static inline float sum(lanes x) {
  half parts[LANES / 4];
  memcpy(parts, &x, sizeof x);
  for (int i = LANES / 8; i; i /= 2)
    for (int j = 0; j < i; j++) parts[j] += parts[j + i];
  return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

static inline lanes larger(lanes a, lanes b) {
#ifdef SCALES
  return OF_LANES(max_ps)(a, b);
#else
  return where(a > b, a, b);
#endif
}

typedef int32_t half_ints __attribute__((vector_size(16)));

static inline half larger_half(half a, half b) {
  half_ints mask = a > b;
  return (half)((mask & (half_ints)a) | (~mask & (half_ints)b));
}

static inline float largest(lanes x) {
  half parts[LANES / 4];
  memcpy(parts, &x, sizeof x);
  for (int i = LANES / 8; i; i /= 2)
    for (int j = 0; j < i; j++) parts[j] = larger_half(parts[j], parts[j + i]);
  float low = parts[0][0] > parts[0][2] ? parts[0][0] : parts[0][2];
  float high = parts[0][1] > parts[0][3] ? parts[0][1] : parts[0][3];
  return low > high ? low : high;
}

#define LOG2_E 1.44269504f

#ifdef SCALES
static inline lanes between(float low, float high, lanes x) { /* the second where one is NaN */
  return OF_LANES(min_ps)(all(high), OF_LANES(max_ps)(all(low), x));
}

static inline lanes whole_of(lanes x) { return ROUND_LANES(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

enum { LOWEST = -151 };
#else
static inline lanes between(float low, float high, lanes x) {
  return where(x > high, all(high), where(x < low, all(low), x));
}

static inline lanes whole_of(lanes x) { return (x + 12582912.0f) - 12582912.0f; } /* the low bits have no more room */

enum { LOWEST = -127 };
#endif

/* 2^(n + f), n whole. */
static inline lanes raise(lanes n, lanes f) {
  lanes p = all(0.00015353362f);
  p = p * f + 0.00133988744f;
  p = p * f + 0.00961843736f;
  p = p * f + 0.0555033247f;
  p = p * f + 0.240226479f;
  p = p * f + 0.693147203f;
  p = p * f + 1.0f;
#ifdef SCALES
  return OF_LANES(scalef_ps)(p, n);
#else
  return p * (lanes)((__builtin_convertvector(n, ints) + 127) << 23); /* of LOWEST, 0 */
#endif
}

static inline lanes power_of_two(lanes x) {
  lanes bounded = between(LOWEST, 126, x), n = whole_of(bounded);
  return raise(n, bounded - n);
}

static inline lanes exponential(lanes x) {
  lanes bounded = between(LOWEST / LOG2_E, 126 / LOG2_E, x), n = whole_of(bounded * LOG2_E);
  return raise(n, ((bounded - n * 0.693359375f) + n * 2.12194440e-4f) * LOG2_E); /* Cody and Waite's ln 2 */
}

/* Scores of a row, `valid` of them and room up to `end` (a multiple of LANES), to e^(score - top), 0 beyond the valid ones.
   Returns top; `total` becomes their sum. */
static inline float weigh(float *row, size valid, size end, float *total) {
  for (size s = valid; s < end; s++) row[s] = -INFINITY;
  lanes tops = all(-INFINITY), sums = all(0);
  for (size s = 0; s < end; s += LANES) tops = larger(load(row + s), tops);
  float top = largest(tops);
  for (size s = 0; s < end; s += LANES) {
    lanes e = power_of_two((load(row + s) - top) * LOG2_E);
    sums += e;
    store(row + s, e);
  }
  *total = sum(sums);
  return top;
}

static inline size rounded(size n, size unit) { return (n + unit - 1) / unit * unit; }

/* Memory that begins at a cache line, with whatever it holds; NULL when there is none. */
static inline void *fresh(size bytes) {
  void *found = NULL;
  return posix_memalign(&found, 64, (size_t)rounded(bytes, 64)) ? NULL : found;
}

/* The same for n floats, zeroed. */
static inline float *room(size n) {
  float *found = fresh(n * (size)sizeof(float));
  if (found) memset(found, 0, (size_t)n * sizeof(float));
  return found;
}
#endif
