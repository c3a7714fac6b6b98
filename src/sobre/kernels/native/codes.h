/* Rows of numbers times rows of codes of 8 or 4 bits, by the processor's products of bytes.

   The numbers are rounded to 8 bits first, once for all rows of weights: eight that one lane adds up share a scale, so that
   what is lost is near bfloat16's own rounding (`prepare`; `coded.in_bytes` is the plain form). A lane adds eight products in
   whole numbers, which is exact, and is then widened and scaled.

   The instruction multiplies bytes without a sign by bytes with one: a code is taken as code + ZERO, and what that adds, ZERO
   times the sum of a lane's numbers, is where its sum starts.

   A block is BLOCK inputs: two registers of 16 lanes of four bytes. In 8 bits lane i of half h holds the inputs 64 h + 4 i
   and the three after it. In 4 bits the 64 bytes of four groups give the low halves of all four, then the high ones: lane i
   of half h holds the inputs 4 (i % 4) + 16 h of group i / 4. Beyond a row's end numbers are 0 and weights are not read. */
#ifndef CODES_H
#define CODES_H

#if defined(INT8)
typedef int8_t weight;
enum { PER_BYTE = 1, GROUP = 0, ZERO = 128, MANY_ROWS = 3 };
#else
typedef uint8_t weight;
enum { PER_BYTE = 2, GROUP = 32, ZERO = 8, MANY_ROWS = 1 };
#endif
enum { BLOCK = 128, WORDS = 16 };
#define TINY 1e-30f /* numbers below it are 0: 127 over them may be no number */

typedef struct {
  int8_t codes[2][64];
  int32_t starts[WORDS];
  float scales[WORDS];
} given;

static inline size given_of(size n) { return (n + BLOCK - 1) / BLOCK; }

/* A mask of the first n of 64 bytes. */
static inline __mmask64 first_bits(size n) {
  return n <= 0 ? 0 : n >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << n) - 1;
}

/* The four numbers of each lane, two in a word: the first two in `firsts`. */
static inline void lanes_of(const number *x, int half, __m512i *firsts, __m512i *seconds) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
#if defined(INT8)
  __m512i low = _mm512_loadu_si512(x + 64 * half), high = _mm512_loadu_si512(x + 64 * half + 32);
#else
  __m256i parts[4];
  for (int group = 0; group < 4; group++) parts[group] = _mm256_loadu_si256((const void *)(x + 32 * group + 16 * half));
  __m512i low = _mm512_inserti64x4(_mm512_castsi256_si512(parts[0]), parts[1], 1);
  __m512i high = _mm512_inserti64x4(_mm512_castsi256_si512(parts[2]), parts[3], 1);
#endif
  *firsts = _mm512_permutex2var_epi32(low, even, high);
  *seconds = _mm512_permutex2var_epi32(low, odd, high);
}

static inline void prepare_block(const number *x, given *to) {
  const __m512i top = _mm512_set1_epi32((int)0xFFFF0000), byte = _mm512_set1_epi32(255);
  __m512 numbers[8], largest = _mm512_setzero_ps(), nothing = _mm512_setzero_ps();
  for (int half = 0; half < 2; half++) {
    __m512i firsts, seconds;
    lanes_of(x, half, &firsts, &seconds);
    numbers[4 * half] = (__m512)_mm512_slli_epi32(firsts, 16);
    numbers[4 * half + 1] = (__m512)_mm512_and_si512(firsts, top);
    numbers[4 * half + 2] = (__m512)_mm512_slli_epi32(seconds, 16);
    numbers[4 * half + 3] = (__m512)_mm512_and_si512(seconds, top);
  }
  for (int i = 0; i < 8; i++) {
    largest = _mm512_max_ps(_mm512_abs_ps(numbers[i]), largest);
    nothing = _mm512_fmadd_ps(numbers[i], _mm512_setzero_ps(), nothing); /* NaN where a number is none, or infinite */
  }
  __m512 scale = _mm512_fmadd_ps(largest, _mm512_set1_ps(1.0f / 127), nothing);
  __mmask16 some = _mm512_cmp_ps_mask(largest, _mm512_set1_ps(TINY), _CMP_GT_OQ);
  __m512 inverse = _mm512_maskz_div_ps(some, _mm512_set1_ps(127), largest);
  __m512i total = _mm512_setzero_si512();
  for (int half = 0; half < 2; half++) {
    __m512i word = _mm512_setzero_si512();
    for (int i = 0; i < 4; i++) {
      __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(numbers[4 * half + i], inverse));
      total = _mm512_add_epi32(total, code);
      word = _mm512_or_si512(word, _mm512_sllv_epi32(_mm512_and_si512(code, byte), _mm512_set1_epi32(8 * i)));
    }
    _mm512_storeu_si512(to->codes[half], word);
  }
  _mm512_storeu_si512(to->starts, _mm512_mullo_epi32(total, _mm512_set1_epi32(-ZERO)));
  _mm512_storeu_ps(to->scales, scale);
}

/* NULL when memory is short. */
static inline given *given_room(const number *x, size rows, size n) {
  (void)x;
  return fresh(rows * given_of(n) * (size)sizeof(given));
}

static inline void free_given(given *rows) { free(rows); }

/* A row of n numbers in blocks. */
static inline void prepare(const number *x, size n, given *to) {
  size i = 0;
  for (; i + BLOCK <= n; i += BLOCK) prepare_block(x + i, to + i / BLOCK);
  if (i == n) return;
  number last[BLOCK] = {0};
  memcpy(last, x + i, (size_t)(n - i) * sizeof(number));
  prepare_block(last, to + i / BLOCK);
}

/* The codes of a block as bytes without a sign, of which `left` (or more) inputs are there. */
static inline void bytes_at(const weight *row, size left, __m512i *low, __m512i *high) {
#if defined(INT8)
  const __m512i zero = _mm512_set1_epi8((char)ZERO);
  if (left >= BLOCK) {
    *low = _mm512_xor_si512(_mm512_loadu_si512(row), zero);
    *high = _mm512_xor_si512(_mm512_loadu_si512(row + 64), zero);
  } else {
    *low = _mm512_xor_si512(_mm512_maskz_loadu_epi8(first_bits(left), row), zero);
    *high = _mm512_xor_si512(_mm512_maskz_loadu_epi8(first_bits(left - 64), row + 64), zero);
  }
#else
  const __m512i half = _mm512_set1_epi8(15);
  __m512i both = left >= BLOCK ? _mm512_loadu_si512(row) : _mm512_maskz_loadu_epi8(first_bits(left / 2), row);
  *low = _mm512_and_si512(both, half);
  *high = _mm512_and_si512(_mm512_srli_epi16(both, 4), half);
#endif
}

/* What a block's lanes are multiplied by, for the weights' sake. */
static inline __m512 scales_at(const number *scales, size left) {
#if defined(INT8)
  (void)scales, (void)left;
  return _mm512_set1_ps(1);
#else
  const __m512i places = _mm512_set_epi16(3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  uint64_t four = 0;
  if (left >= BLOCK)
    memcpy(&four, scales, sizeof four);
  else
    memcpy(&four, scales, (size_t)(left / GROUP) * sizeof(number));
  return (__m512)_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, places, _mm512_set1_epi64((long long)four)); /* the top halves */
#endif
}

/* so_far + a block's products, lane by lane. */
static inline __m512 add_block(__m512 so_far, const given *x, __m512i low, __m512i high, __m512 scales) {
  __m512i sums = _mm512_dpbusd_epi32(_mm512_loadu_si512(x->starts), low, _mm512_loadu_si512(x->codes[0]));
  __m512 lane = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(sums, high, _mm512_loadu_si512(x->codes[1])));
  __m512 scale = _mm512_loadu_ps(x->scales);
  return _mm512_fmadd_ps(lane, GROUP ? _mm512_mul_ps(scale, scales) : scale, so_far);
}

static inline __attribute__((always_inline)) void add_columns(const given *const *x, const weight *const *w,
                                                             const number *const *scales, size n,
                                                             sums so_far[][ROWS], const int rows, const int columns) {
  for (int c = 0; c < columns; c++)
    for (int r = 0; r < rows; r++) so_far[c][r] = nothing();
  for (size i = 0; i < n; i += BLOCK) {
    __m512i low[COLUMNS], high[COLUMNS];
    __m512 factors[COLUMNS];
    for (int c = 0; c < columns; c++) {
      bytes_at(w[c] + i / PER_BYTE, n - i, low + c, high + c);
      factors[c] = scales_at(scales[c] + (GROUP ? i / GROUP : 0), n - i);
      for (size line = 0; line < BLOCK / PER_BYTE; line += 64) __builtin_prefetch(w[c] + i / PER_BYTE + AHEAD + line);
    }
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < columns; c++)
        so_far[c][r] = add_block(so_far[c][r], x[r] + i / BLOCK, low[c], high[c], factors[c]);
  }
}

static inline __attribute__((always_inline)) void alone(const given *const *x, const weight *w, const number *scales, size n,
                                                       sums *so_far, const int rows) {
  add_columns(x, &w, &scales, n, (sums(*)[ROWS])so_far, rows, 1);
}

static inline __attribute__((always_inline)) void together(const given *const *x, const weight *const *w,
                                                          const number *const *scales, size n,
                                                          sums so_far[COLUMNS][ROWS], const int rows) {
  add_columns(x, w, scales, n, so_far, rows, COLUMNS);
}

/* In 8 bits a row of weights has one scale. */
static inline void scaled(float *found, const number *const *scales) {
#if defined(INT8)
  __m128 each = _mm_setr_ps(wide(scales[0][0]), wide(scales[1][0]), wide(scales[2][0]), wide(scales[3][0]));
  _mm512_storeu_ps(found, _mm512_loadu_ps(found) * _mm512_broadcast_f32x4(each));
#else
  (void)found, (void)scales;
#endif
}

#if defined(INT8)
/* A step of codes as numbers: exact in 8 bits, times their scales in 4. */
static inline operand widened_at(const weight *row, const number *scales, size i) {
  (void)scales;
  __m256i codes = _mm256_loadu_si256((const void *)(row + i));
  __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(codes)));
  __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(codes, 1)));
  return _mm512_cvtne2ps_pbh(high, low); /* exact: a code has 7 bits */
}
#elif defined(INT4)
static inline operand widened_at(const weight *row, const number *scales, size i) {
  const __m512 values = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
  __m256i table = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(values, _mm512_set1_ps(wide(scales[i / GROUP]))));
  __m128i bytes = _mm_loadu_si128((const void *)(row + i / 2)), mask = _mm_set1_epi8(15);
  __m256i codes = _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask), _mm_and_si128(bytes, mask));
  return (operand)_mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(codes), _mm512_castsi256_si512(table));
}
#endif

static inline void widen_row(number *to, const weight *row, const number *scales, size n) {
  size i = 0;
  for (; i + STEP <= n; i += STEP) keep(to + i, widened_at(row, scales, i));
  for (; i < n; i++) to[i] = narrow(row[i]);
}
#endif
