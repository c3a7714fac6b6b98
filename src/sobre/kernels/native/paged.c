/* Attention of one new token per sequence to the cached entries, where they lie: nothing is gathered.

   The heads of a group share each entry that is read, ROWS of them at a time. Sums run over the positions in order, so
   that threads, which divide sequences, groups and heads, change no bit, and neither do the other sequences.

   Shapes: n sequences, h query heads, g key heads, k query/key width, w value width; entries of `width` numbers, in which
   the key of a group begins at group * k and its value at value_at + group * w; contiguous. */
#include "lanes.h"

enum { ROWS = 4, TILE = 16 };
#define MANY 100000 /* products that are worth a second thread */

/* scores[r * S + s] = scale * q[r] . entry[s][key...], for `rows` rows. */
static inline __attribute__((always_inline)) void scores_of(const float *const *q, const number *const *entry, size key,
                                                           size S, size length, size k, float scale, float *scores,
                                                           const int rows) {
  for (size s = 0; s < length; s++) {
    const number *at = entry[s] + key;
    lanes sums[ROWS] = {all(0)};
    size j = 0;
    for (; j + LANES <= k; j += LANES) {
      lanes part = get(at + j);
      for (int r = 0; r < rows; r++) sums[r] += load(q[r] + j) * part;
    }
    for (int r = 0; r < rows; r++) {
      float total = sum(sums[r]);
      for (size t = j; t < k; t++) total += q[r][t] * wide(at[t]);
      scores[r * S + s] = total * scale;
    }
  }
}

/* out[r][.] = sum of weights[r * S + s] * entry[s][value...], divided by totals[r]. */
static inline __attribute__((always_inline)) void values_of(const float *weights, const number *const *entry, size value,
                                                           size S, size length, size w, const float *totals,
                                                           number *const *out, const int rows) {
  size j = 0;
  for (; j + TILE <= w; j += TILE) {
    lanes sums[ROWS][2] = {{all(0)}};
    for (size s = 0; s < length; s++) {
      lanes left = get(entry[s] + value + j), right = get(entry[s] + value + j + LANES);
      for (int r = 0; r < rows; r++) {
        sums[r][0] += weights[r * S + s] * left;
        sums[r][1] += weights[r * S + s] * right;
      }
    }
    for (int r = 0; r < rows; r++) {
      put(out[r] + j, sums[r][0] / totals[r]);
      put(out[r] + j + LANES, sums[r][1] / totals[r]);
    }
  }
  for (; j < w; j++)
    for (int r = 0; r < rows; r++) {
      float total = 0;
      for (size s = 0; s < length; s++) total += weights[r * S + s] * wide(entry[s][value + j]);
      out[r][j] = narrow(total / totals[r]);
    }
}

static inline __attribute__((always_inline)) void attend(const float *const *q, const number *const *entry, size key,
                                                        size value, size S, size length, size k, size w, float scale,
                                                        float *scores, number *const *out, const int rows) {
  float totals[ROWS];
  scores_of(q, entry, key, S, length, k, scale, scores, rows);
  for (int r = 0; r < rows; r++) weigh(scores + r * S, length, rounded(length, LANES), totals + r);
  values_of(scores, entry, value, S, length, w, totals, out, rows);
}

/* Returns 0, or 1 when memory is short. `table` has n rows of `blocks` numbers of blocks, each of `block` entries. */
int NAMED(paged_attention)(const number *q, const number *cells, const int64_t *table, const int64_t *lengths, number *out,
                           size n, size blocks, size block, size longest, size width, size h, size g, size k, size w,
                           size value_at, float scale) {
  size each = h / g, parts = (each + ROWS - 1) / ROWS, S = rounded(longest, LANES);
  int failed = 0;
#pragma omp parallel if (n * h * longest * k > MANY)
  {
    float *scores = room(ROWS * S), *queries = room(ROWS * k);
    const number **entry = malloc((size_t)(S + 1) * sizeof(number *));
#pragma omp for schedule(dynamic)
    for (size one = 0; one < n * g * parts; one++) {
      size i = one / (g * parts), group = one / parts % g, first = group * each + one % parts * ROWS;
      size rows = (group + 1) * each - first, length = lengths[i];
      const float *from[ROWS];
      number *to[ROWS];
      if (rows > ROWS) rows = ROWS;
      if (!scores || !queries || !entry) {
        failed = 1;
        continue;
      }
      for (size b = 0, s = 0; s < length; b++) {
        const number *cell = cells + table[i * blocks + b] * block * width;
        for (size t = 0; t < block && s < length; t++) entry[s++] = cell + t * width;
      }
      for (size r = 0; r < rows; r++) {
        from[r] = queries + r * k;
        for (size j = 0; j < k; j++) queries[r * k + j] = wide(q[(i * h + first + r) * k + j]);
        to[r] = out + (i * h + first + r) * w;
      }
      size key = group * k, value = value_at + group * w;
      if (rows == 4)
        attend(from, entry, key, value, S, length, k, w, scale, scores, to, 4);
      else if (rows == 3)
        attend(from, entry, key, value, S, length, k, w, scale, scores, to, 3);
      else if (rows == 2)
        attend(from, entry, key, value, S, length, k, w, scale, scores, to, 2);
      else
        attend(from, entry, key, value, S, length, k, w, scale, scores, to, 1);
    }
    free(scores);
    free(queries);
    free(entry);
  }
  return failed;
}
