/* What top_k, top_p and min_p leave of rows of probabilities: the rest becomes 0, in place.

   The last token that stays is found without sorting. The bits of positive floats order as the floats do, NaN above all:
   a pass sums the probabilities by their first twelve bits, walks from the largest down until there is enough, and the
   next passes look by eleven and by eight more bits at what lies where the walk ended. Tokens as probable as the last one
   stay, too. */
#include "lanes.h"

#define MANY 16384 /* probabilities that are worth a second thread */
enum { PASSES = 3, MOST = 1 << 12 };

static uint32_t bits_of(float p) {
  uint32_t bits;
  memcpy(&bits, &p, sizeof bits);
  return bits;
}

/* The probability at which those not below it are at least `k`, or sum up to `mass`; the smallest when neither comes.
   `sum_of_k` becomes the sum of the k largest, where it is k that ends the walk. */
static float last_kept(const float *row, size v, int64_t k, double mass, double *sum_of_k) {
  static const int shifts[PASSES] = {19, 8, 0}, widths[PASSES] = {12, 11, 8};
  double sums[MOST], sum = 0;
  int64_t count = 0;
  int32_t counts[MOST];
  uint32_t prefix = 0, known = 0;
  for (int pass = 0; pass < PASSES; pass++) {
    size n = 1L << widths[pass], at = -1;
    memset(sums, 0, (size_t)n * sizeof *sums);
    memset(counts, 0, (size_t)n * sizeof *counts);
    for (size i = 0; i < v; i++) {
      uint32_t bits = bits_of(row[i]);
      if ((bits & known) != prefix) continue;
      size place = bits >> shifts[pass] & (uint32_t)(n - 1);
      sums[place] += row[i];
      counts[place]++;
    }
    for (size place = n - 1; place >= 0; place--) {
      if (!counts[place]) continue;
      if (at >= 0) sum += sums[at], count += counts[at];
      at = place;
      if (count + counts[at] >= k || sum + sums[at] >= mass) break;
    }
    prefix |= (uint32_t)at << shifts[pass];
    known |= (uint32_t)(n - 1) << shifts[pass];
  }
  float last;
  memcpy(&last, &prefix, sizeof last);
  *sum_of_k = sum + (double)(k - count) * last;
  return last;
}

static double sum_of(const float *row, size v) {
  double sums[4] = {0};
  for (size i = 0; i < v; i++) sums[i % 4] += row[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* probs (r, v), the `f` rows of it that are filtered, and for each of those its three limits; a top_k of v or more and a
   top_p of 1 leave everything. */
void keep_likely(float *probs, const int64_t *rows, const int64_t *top_k, const double *top_p, const float *min_p, size f,
                 size v) {
#pragma omp parallel for if (f * v > MANY)
  for (size i = 0; i < f; i++) {
    float *row = probs + rows[i] * v, last = 0, most = 0;
    double total = 0, all = 0;
    if (top_k[i] < v) last = last_kept(row, v, top_k[i], 1.0 / 0.0, &total);
    if (top_p[i] < 1) {
      if (top_k[i] >= v) total = sum_of(row, v);
      last = last_kept(row, v, top_k[i], top_p[i] * total, &all);
    }
    for (size j = 0; j < v; j++) most = row[j] > most ? row[j] : most;
    last = most * min_p[i] > last ? most * min_p[i] : last;
    for (size j = 0; j < v; j++) row[j] = row[j] < last ? 0 : row[j];
  }
}
