/* The routed experts of one token: matrices times a vector, each row of a weight read once, where it lies.

   y = sum over the token's experts of weight * down (silu(gate x) * up x). Threads divide rows, so that they change no
   bit.

   Shapes: `active` experts of the token, d model width, f expert width; the weights of all experts are stacked. */
#include "lanes.h"

#define MANY 100000 /* products that are worth a second thread */

static inline float dot(const float *a, const float *b, size n) {
  lanes sums[4] = {all(0), all(0), all(0), all(0)};
  size i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES)
    for (int part = 0; part < 4; part++) sums[part] += load(a + i + part * LANES) * load(b + i + part * LANES);
  for (; i + LANES <= n; i += LANES) sums[0] += load(a + i) * load(b + i);
  float total = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; i++) total += a[i] * b[i];
  return total;
}

/* inner has active * f numbers; y has d. */
void experts_of_one(const float *x, const int64_t *experts, const float *weights, const float *gate, const float *up,
                    const float *down, float *inner, float *y, size active, size d, size f) {
#pragma omp parallel if (active * d * f > MANY)
  {
#pragma omp for
    for (size i = 0; i < active * f; i++) {
      size a = i / f, row = (experts[a] * f + i % f) * d;
      float gated = dot(gate + row, x, d);
      inner[i] = weights[a] * gated / (1 + expf(-gated)) * dot(up + row, x, d);
    }
#pragma omp for
    for (size j = 0; j < d; j++) {
      float total = 0;
      for (size a = 0; a < active; a++) total += dot(down + (experts[a] * d + j) * f, inner + a * f, f);
      y[j] = total;
    }
  }
}
