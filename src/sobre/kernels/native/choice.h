/* The `k` largest of `n` scores, the largest first; of equals the first wins, and what is no number comes before all,
   so that it is seen. */
#ifndef CHOICE_H
#define CHOICE_H
#include <limits.h>
#include <stdint.h>
#include <string.h>

/* A number that orders as the score, and below it the places backwards. */
static inline int64_t place_in_order(float score, long i) {
  int32_t bits;
  score += 0.0f; /* -0 is 0 */
  memcpy(&bits, &score, sizeof bits);
  bits = score != score ? INT32_MAX : bits ^ (bits >> 31 & INT32_MAX);
  return (int64_t)bits << 32 | (uint32_t)~i;
}

static inline void best_of(const float *scores, long n, long k, int64_t *best) {
  for (long j = 0; j < k; j++) best[j] = INT64_MIN;
  for (long i = 0; i < n; i++) {
    int64_t next = place_in_order(scores[i], i);
    for (long j = 0; j < k; j++) { /* no branch depends on the scores */
      int64_t kept = best[j];
      best[j] = next > kept ? next : kept;
      next = next > kept ? kept : next;
    }
  }
  for (long j = 0; j < k; j++) best[j] = (uint32_t)~best[j];
}
#endif
