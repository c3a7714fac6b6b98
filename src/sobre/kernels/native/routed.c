/* A feed-forward layer of few tokens in one call: the router's choice, the chosen experts, and the shared one that every
   token visits (models/moe.py); or that one alone, a plain gated layer (models/ffn.py).

   Scores are float32, as are the router's weights.

   Shapes: x and y (n, d), router (e, d), bias (e) or NULL, experts and weights (n, active); the shared expert's width is
   `shared`, 0 without one. */
#include "choice.h"
#include "step.h"
#ifndef LACKS_FORM

#define MANY 100000 /* products that are worth a second thread */

/* The experts of one token, and what each counts for. */
static void choose(const number *x, const float *router, const float *bias, float *scores, float *steered, int64_t *experts,
                   float *weights, size e, size d, size active, size is_softmax, size is_normed, float scale) {
  float top = -INFINITY, sum_of_all = 0, chosen = 0;
  for (size first = 0; first < e; first += COLUMNS) { /* each number of x is read once for so many */
    const float *rows[COLUMNS];
    lanes sums[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) {
      rows[c] = router + (first + c < e ? first + c : e - 1) * d;
      sums[c] = all(0);
    }
    size j = 0;
    for (; j + LANES <= d; j += LANES) {
      lanes part = get(x + j);
      for (int c = 0; c < COLUMNS; c++) sums[c] += part * load(rows[c] + j);
    }
    for (size i = first; i < first + COLUMNS && i < e; i++) {
      float rest = 0;
      for (size t = j; t < d; t++) rest += wide(x[t]) * rows[i - first][t];
      scores[i] = sum(sums[i - first]) + rest;
      top = scores[i] > top ? scores[i] : top;
    }
  }
  for (size i = 0; i < e; i++) {
    scores[i] = is_softmax ? expf(scores[i] - top) : 1 / (1 + expf(-scores[i]));
    sum_of_all += scores[i];
  }
  for (size i = 0; i < e; i++) {
    if (is_softmax) scores[i] /= sum_of_all;
    steered[i] = scores[i] + (bias ? bias[i] : 0);
  }
  best_of(steered, e, active, experts);
  for (size a = 0; a < active; a++) weights[a] = scores[experts[a]], chosen += weights[a];
  for (size a = 0; a < active; a++) weights[a] *= scale / (is_normed ? chosen + 1e-20f : 1);
}

/* down (silu(gate x) * up x): an expert that every token visits. Returns 0, or 1 when memory is short. */
int NAMED(gated)(const number *x, const weight *gate, const number *gate_scales, const weight *up, const number *up_scales,
                 const weight *down, const number *down_scales, number *y, size n, size d, size f) {
  float *parts = fresh(n * (d + f + 1) * (size)sizeof(float));
  int64_t *order = (int64_t *)room(2 * (2 * n + 3));
  int failed = !parts || !order;
  if (!failed) {
    float *weights = parts + n * d;
    for (size i = 0; i < n; i++) weights[i] = 1;
    failed = NAMED(few_experts)(x, order + n + 3, weights, gate, gate_scales, up, up_scales, down, down_scales,
                                (number *)(weights + n), parts, order, y, n, 1, 1, d, f);
  }
  free(parts);
  free(order);
  return failed;
}

/* Returns 0, or 1 when memory is short. */
int NAMED(routed)(const number *x, const float *router, const float *bias, const weight *gate, const number *gate_scales,
                  const weight *up, const number *up_scales, const weight *down, const number *down_scales,
                  const weight *shared_gate, const number *shared_gate_scales, const weight *shared_up,
                  const number *shared_up_scales, const weight *shared_down, const number *shared_down_scales,
                  int64_t *experts, float *weights, number *y, size n, size active, size all_experts, size d, size f,
                  size shared, size is_softmax, size is_normed, float scale) {
  size copies = n * active;
  float *parts = fresh((2 * n * all_experts + copies * (d + f) + n * d) * (size)sizeof(float));
  int64_t *order = fresh((2 * all_experts + 1 + copies) * (size)sizeof(int64_t));
  int failed = !parts || !order;
  if (!failed) {
    number *inner = (number *)(parts + copies * d), *of_all = (number *)(parts + copies * (d + f));
    float *scores = parts + copies * (d + f) + n * d;
#pragma omp parallel for if (n * all_experts * d > MANY)
    for (size i = 0; i < n; i++) {
      float *of_one = scores + 2 * i * all_experts;
      choose(x + i * d, router, bias, of_one, of_one + all_experts, experts + i * active, weights + i * active, all_experts, d,
             active, is_softmax, is_normed, scale);
    }
    failed = NAMED(few_experts)(x, experts, weights, gate, gate_scales, up, up_scales, down, down_scales, inner, parts, order,
                                y, n, active, all_experts, d, f);
    if (!failed && shared) {
      failed = NAMED(gated)(x, shared_gate, shared_gate_scales, shared_up, shared_up_scales, shared_down, shared_down_scales,
                            of_all, n, d, shared);
      add_rows(y, of_all, n * d);
    }
  }
  free(parts);
  free(order);
  return failed;
}
#endif
