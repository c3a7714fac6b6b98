/* RMSNorm, SwiGLU and the softmax of the output head: one pass over memory each, forward and back.

   Shapes: n rows, d width, v vocabulary; all contiguous. Weights, losses and what is kept for the way back are float32. */
#ifdef __AVX512F__
#define LANES 16
#endif
#include "lanes.h"

#define MANY 16384 /* numbers that are worth a second thread */
#define ROWS 64    /* rows whose share of a weight's gradient is summed by itself: the same sum for any threads */

/* `inverse`, what the gradient needs, may be NULL. */
void NAMED(rms_norm)(const number *x, const float *weight, number *y, float *inverse, size n, size d, float eps) {
#pragma omp parallel for if (n * d > MANY)
  for (size i = 0; i < n; i++) {
    const number *xi = x + i * d;
    number *yi = y + i * d;
    lanes squares = all(0);
    float rest = 0;
    size j = 0;
    for (; j + LANES <= d; j += LANES) squares += get(xi + j) * get(xi + j);
    for (; j < d; j++) rest += wide(xi[j]) * wide(xi[j]);
    float scale = 1.0f / sqrtf((sum(squares) + rest) / (float)d + eps);
    if (inverse) inverse[i] = scale;
    for (j = 0; j + LANES <= d; j += LANES) put(yi + j, get(xi + j) * scale * load(weight + j));
    for (; j < d; j++) yi[j] = narrow(wide(xi[j]) * scale * weight[j]);
  }
}

/* dx, and in `partial` (n / ROWS rounded up, d) the gradient of the weight by blocks of rows. */
void NAMED(rms_norm_back)(const number *dy, const number *x, const float *weight, const float *inverse, number *dx,
                          float *partial, size n, size d) {
  size blocks = (n + ROWS - 1) / ROWS;
#pragma omp parallel for if (n * d > MANY)
  for (size b = 0; b < blocks; b++) {
    float *dweight = partial + b * d;
    memset(dweight, 0, (size_t)d * sizeof(float));
    size end = (b + 1) * ROWS < n ? (b + 1) * ROWS : n;
    for (size i = b * ROWS; i < end; i++) {
      const number *xi = x + i * d, *di = dy + i * d;
      number *to = dx + i * d;
      float scale = inverse[i], rest = 0;
      lanes dots = all(0);
      size j = 0;
      for (; j + LANES <= d; j += LANES) dots += get(di + j) * load(weight + j) * get(xi + j);
      for (; j < d; j++) rest += wide(di[j]) * weight[j] * wide(xi[j]);
      float mean = (sum(dots) + rest) * scale * scale / (float)d;
      for (j = 0; j + LANES <= d; j += LANES) {
        lanes xs = get(xi + j), ds = get(di + j);
        put(to + j, (ds * load(weight + j) - xs * mean) * scale);
        store(dweight + j, load(dweight + j) + ds * xs * scale);
      }
      for (; j < d; j++) {
        to[j] = narrow((wide(di[j]) * weight[j] - wide(xi[j]) * mean) * scale);
        dweight[j] += wide(di[j]) * wide(xi[j]) * scale;
      }
    }
  }
}

void NAMED(swiglu)(const number *gate, const number *up, number *y, size n) {
#pragma omp parallel for if (n > MANY)
  for (size b = 0; b < (n + 1023) / 1024; b++) {
    size i = b * 1024, end = i + 1024 < n ? i + 1024 : n;
    for (; i + LANES <= end; i += LANES) {
      lanes g = get(gate + i);
      put(y + i, g / (1.0f + exponential(-g)) * get(up + i));
    }
    for (; i < end; i++) {
      float g = wide(gate[i]);
      y[i] = narrow(g / (1.0f + expf(-g)) * wide(up[i]));
    }
  }
}

void NAMED(swiglu_back)(const number *dy, const number *gate, const number *up, number *dgate, number *dup, size n) {
#pragma omp parallel for if (n > MANY)
  for (size b = 0; b < (n + 1023) / 1024; b++) {
    size i = b * 1024, end = i + 1024 < n ? i + 1024 : n;
    for (; i + LANES <= end; i += LANES) {
      lanes g = get(gate + i), d = get(dy + i);
      lanes s = 1.0f / (1.0f + exponential(-g));
      put(dup + i, d * g * s);
      put(dgate + i, d * get(up + i) * s * (1.0f + g * (1.0f - s)));
    }
    for (; i < end; i++) {
      float g = wide(gate[i]), d = wide(dy[i]), s = 1.0f / (1.0f + expf(-g));
      dup[i] = narrow(d * g * s);
      dgate[i] = narrow(d * wide(up[i]) * s * (1.0f + g * (1.0f - s)));
    }
  }
}

/* y = silu(gate) * up * the row's weight, for n rows of f; a row holds gate, then up. */
void NAMED(weighted_swiglu)(const number *gate_up, const number *weights, number *y, size n, size f) {
#pragma omp parallel for if (n * f > MANY)
  for (size i = 0; i < n; i++) {
    const number *gate = gate_up + i * 2 * f, *up = gate + f;
    number *to = y + i * f;
    float weight = wide(weights[i]);
    size j = 0;
    for (; j + LANES <= f; j += LANES) {
      lanes g = get(gate + j);
      put(to + j, g / (1.0f + exponential(-g)) * get(up + j) * weight);
    }
    for (; j < f; j++) {
      float g = wide(gate[j]);
      to[j] = narrow(g / (1.0f + expf(-g)) * wide(up[j]) * weight);
    }
  }
}

/* Its gradients from dy, those of a row of gate_up side by side as well, and y itself once more. */
void NAMED(weighted_swiglu_back)(const number *dy, const number *gate_up, const number *weights, number *dgate_up,
                                 number *dweights, number *y, size n, size f) {
#pragma omp parallel for if (n * f > MANY)
  for (size i = 0; i < n; i++) {
    const number *gate = gate_up + i * 2 * f, *up = gate + f, *di = dy + i * f;
    number *dgate = dgate_up + i * 2 * f, *dup = dgate + f, *to = y + i * f;
    float weight = wide(weights[i]), rest = 0;
    lanes dots = all(0);
    size j = 0;
    for (; j + LANES <= f; j += LANES) {
      lanes g = get(gate + j), u = get(up + j), d = get(di + j);
      lanes s = 1.0f / (1.0f + exponential(-g)), inner = g * s * u;
      dots += d * inner;
      put(to + j, inner * weight);
      put(dup + j, d * weight * g * s);
      put(dgate + j, d * weight * u * s * (1.0f + g * (1.0f - s)));
    }
    for (; j < f; j++) {
      float g = wide(gate[j]), u = wide(up[j]), d = wide(di[j]), s = 1.0f / (1.0f + expf(-g)), inner = g * s * u;
      rest += d * inner;
      to[j] = narrow(inner * weight);
      dup[j] = narrow(d * weight * g * s);
      dgate[j] = narrow(d * weight * u * s * (1.0f + g * (1.0f - s)));
    }
    dweights[i] = narrow(sum(dots) + rest);
  }
}

/* Overwrite n rows of logits with softmax - onehot(target), and fill nll. Returns 0, or 1 when memory is short. */
int NAMED(errors)(number *logits, const int64_t *targets, float *nll, size n, size v) {
  size end = rounded(v, LANES);
  int failed = 0;
#pragma omp parallel if (n * v > MANY)
  {
    float *wide_row = room(end);
    if (!wide_row) failed = 1;
#pragma omp for
    for (size i = 0; i < n; i++) {
      number *row = logits + i * v;
      if (!wide_row) continue;
      size j = 0;
      for (; j + LANES <= v; j += LANES) store(wide_row + j, get(row + j));
      for (; j < v; j++) wide_row[j] = wide(row[j]);
      float target = wide_row[targets[i]], total, top = weigh(wide_row, v, end, &total);
      nll[i] = logf(total) + top - target;
      lanes share = all(1.0f / total);
      for (j = 0; j + LANES <= v; j += LANES) put(row + j, load(wide_row + j) * share);
      for (; j < v; j++) row[j] = narrow(wide_row[j] * share[0]);
      row[targets[i]] = narrow(wide_row[targets[i]] * share[0] - 1.0f);
    }
    free(wide_row);
  }
  return failed;
}
