/* The experts of many tokens: of each row of scores the largest. */
#include "choice.h"

#define MANY 16384 /* scores that are worth a second thread */

/* scores (n, e), experts (n, k), k at most e. */
void best_experts(const float *scores, int64_t *experts, long n, long e, long k) {
#pragma omp parallel for if (n * e > MANY)
  for (long i = 0; i < n; i++) best_of(scores + i * e, e, k, experts + i * k);
}
