/* RMSNorm, rotary embedding, SwiGLU and the softmax of the output head: one pass over memory each, forward and back.

   Shapes: n rows, d width, h heads, r rotary width, v vocabulary; all contiguous float32. */
#include "lanes.h"

#define MANY 16384 /* numbers that are worth a second thread */
#define ROWS 64    /* rows whose share of a weight's gradient is summed by itself: the same sum for any threads */

/* `inverse`, what the gradient needs, may be NULL. */
void rms_norm(const float *x, const float *weight, float *y, float *inverse, size n, size d, float eps) {
#pragma omp parallel for if (n * d > MANY)
  for (size i = 0; i < n; i++) {
    const float *xi = x + i * d;
    float *yi = y + i * d;
    lanes squares = all(0);
    float rest = 0;
    size j = 0;
    for (; j + LANES <= d; j += LANES) {
      lanes part = load(xi + j);
      squares += part * part;
    }
    for (size t = j; t < d; t++) rest += xi[t] * xi[t];
    float scale = 1.0f / sqrtf((sum(squares) + rest) / (float)d + eps);
    if (inverse) inverse[i] = scale;
    for (size t = 0; t < d; t++) yi[t] = xi[t] * scale * weight[t];
  }
}

/* dx, and in `partial` (n / ROWS rounded up, d) the gradient of the weight by blocks of rows. */
void rms_norm_back(const float *dy, const float *x, const float *weight, const float *inverse, float *dx,
                   float *partial, size n, size d) {
  size blocks = (n + ROWS - 1) / ROWS;
#pragma omp parallel for if (n * d > MANY)
  for (size b = 0; b < blocks; b++) {
    float *dweight = partial + b * d;
    memset(dweight, 0, (size_t)d * sizeof(float));
    size end = (b + 1) * ROWS < n ? (b + 1) * ROWS : n;
    for (size i = b * ROWS; i < end; i++) {
      const float *xi = x + i * d, *di = dy + i * d;
      float scale = inverse[i], rest = 0;
      lanes dots = all(0);
      size j = 0;
      for (; j + LANES <= d; j += LANES) dots += load(di + j) * load(weight + j) * load(xi + j);
      for (size t = j; t < d; t++) rest += di[t] * weight[t] * xi[t];
      float mean = (sum(dots) + rest) * scale * scale / (float)d;
      for (size t = 0; t < d; t++) {
        dx[i * d + t] = (di[t] * weight[t] - xi[t] * mean) * scale;
        dweight[t] += di[t] * xi[t] * scale;
      }
    }
  }
}

void swiglu(const float *gate, const float *up, float *y, size n) {
#pragma omp parallel for if (n > MANY)
  for (size b = 0; b < (n + 1023) / 1024; b++) {
    size i = b * 1024, end = i + 1024 < n ? i + 1024 : n;
    for (; i + LANES <= end; i += LANES) {
      lanes g = load(gate + i);
      store(y + i, g / (1.0f + exponential(-g)) * load(up + i));
    }
    for (; i < end; i++) y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
  }
}

void swiglu_back(const float *dy, const float *gate, const float *up, float *dgate, float *dup, size n) {
#pragma omp parallel for if (n > MANY)
  for (size b = 0; b < (n + 1023) / 1024; b++) {
    size i = b * 1024, end = i + 1024 < n ? i + 1024 : n;
    for (; i + LANES <= end; i += LANES) {
      lanes g = load(gate + i), d = load(dy + i);
      lanes s = 1.0f / (1.0f + exponential(-g));
      store(dup + i, d * g * s);
      store(dgate + i, d * load(up + i) * s * (1.0f + g * (1.0f - s)));
    }
    for (; i < end; i++) {
      float g = gate[i], s = 1.0f / (1.0f + expf(-g));
      dup[i] = dy[i] * g * s;
      dgate[i] = dy[i] * up[i] * s * (1.0f + g * (1.0f - s));
    }
  }
}

/* Pairs (0, 1), (2, 3), ... when interleaved, else (0, r / 2), (1, r / 2 + 1), ...; `turn` is 1, or -1 for back. */
void rope(const float *x, const float *cosines, const float *sines, float *y, size n, size h, size r,
          size interleaved, float turn) {
  size half = r / 2;
#pragma omp parallel for if (n * h * r > MANY)
  for (size i = 0; i < n; i++) {
    const float *c = cosines + i * half, *s = sines + i * half;
    for (size j = 0; j < h; j++) {
      const float *a = x + (i * h + j) * r;
      float *to = y + (i * h + j) * r;
      if (interleaved)
        for (size t = 0; t < half; t++) {
          float even = a[2 * t], odd = a[2 * t + 1], sine = turn * s[t];
          to[2 * t] = even * c[t] - odd * sine;
          to[2 * t + 1] = even * sine + odd * c[t];
        }
      else
        for (size t = 0; t < half; t++) {
          float first = a[t], second = a[half + t], sine = turn * s[t];
          to[t] = first * c[t] - second * sine;
          to[half + t] = first * sine + second * c[t];
        }
    }
  }
}

/* Overwrite n rows of logits with softmax - onehot(target), and fill nll. */
void errors(float *logits, const int64_t *targets, float *nll, size n, size v) {
#pragma omp parallel for if (n * v > MANY)
  for (size i = 0; i < n; i++) {
    float *row = logits + i * v;
    float target = row[targets[i]], rest = 0, top;
    lanes tops = all(-INFINITY), sums = all(0);
    size j = 0;
    for (; j + LANES <= v; j += LANES) tops = larger(load(row + j), tops);
    top = largest(tops);
    for (size t = j; t < v; t++) top = row[t] > top ? row[t] : top;
    for (j = 0; j + LANES <= v; j += LANES) {
      lanes e = exponential(load(row + j) - top);
      sums += e;
      store(row + j, e);
    }
    for (; j < v; j++) rest += row[j] = expf(row[j] - top);
    float total = sum(sums) + rest;
    nll[i] = logf(total) + top - target;
    float share = 1.0f / total;
    for (size t = 0; t < v; t++) row[t] *= share;
    row[targets[i]] -= 1.0f;
  }
}
