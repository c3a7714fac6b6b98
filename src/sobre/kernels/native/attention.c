/* Causal attention of ragged sequences, forward and back: a few queries at a time against the keys before them.

   Scores of ROWS queries are computed in registers, TILE keys at a time, from a transposed copy of the keys; the
   probabilities of these rows lie in the innermost cache, and only the log of their sum is kept. Back, they are made
   again, as in FlashAttention (arXiv 2307.08691, 2.3); dk and dv are summed over the queries of a key head in order, so
   that threads, which divide sequences and key heads, change no bit.

   Shapes: n tokens, h query heads, g key heads, k query/key width, w value width; contiguous. Inside one
   sequence and head: T tokens, S its keys rounded up to TILE, K and W widths rounded up to TILE. */
#include "lanes.h"

enum { ROWS = 6, TILE = 16 };

typedef struct {
  const number *q, *k, *v;
  number *out;
  float *logsum; /* kept for the way back; NULL when there is none */
  const number *dout;
  number *dq, *dk, *dv;
  size h, g, k_width, w_width;
  float scale;
} job;

static size smaller(size a, size b) { return a < b ? a : b; }

/* to[j][i] = from[i][j] for `rows` rows of `width`, `stride` apart. */
static void transpose(const number *from, size rows, size width, size stride, float *to, size to_stride) {
  for (size i = 0; i < rows; i++)
    for (size j = 0; j < width; j++) to[j * to_stride + i] = wide(from[i * stride + j]);
}

/* to = rows of `width`, laid out `to_stride` apart. */
static void copy(const number *from, size rows, size width, size stride, float *to, size to_stride) {
  for (size i = 0; i < rows; i++)
    for (size j = 0; j < width; j++) to[i * to_stride + j] = wide(from[i * stride + j]);
}

/* out[r][s] = scale * a[r] . b_t[.][s], for ROWS rows of `stride` and s below `end` (a multiple of TILE). */
static void products(const float *a, size stride, const float *b_t, size width, size S, size end, float scale,
                     float *out) {
  for (size s = 0; s < end; s += TILE) {
    lanes sums[ROWS][2] = {{all(0)}};
    for (size j = 0; j < width; j++) {
      lanes left = load(b_t + j * S + s), right = load(b_t + j * S + s + LANES);
      for (int r = 0; r < ROWS; r++) {
        sums[r][0] += a[r * stride + j] * left;
        sums[r][1] += a[r * stride + j] * right;
      }
    }
    for (int r = 0; r < ROWS; r++) {
      store(out + r * S + s, sums[r][0] * scale);
      store(out + r * S + s + LANES, sums[r][1] * scale);
    }
  }
}

/* out[r][.] = sum over s below `end` of weights[r][s] * b[s][.], for ROWS rows; b has rows of `stride`. */
static void mixtures(const float *weights, const float *b, size stride, size S, size end, number *const *out,
                     size width, const float *factors) {
  for (size j = 0; j < stride; j += TILE) {
    lanes sums[ROWS][2] = {{all(0)}};
    for (size s = 0; s < end; s++) {
      lanes left = load(b + s * stride + j), right = load(b + s * stride + j + LANES);
      for (int r = 0; r < ROWS; r++) {
        sums[r][0] += weights[r * S + s] * left;
        sums[r][1] += weights[r * S + s] * right;
      }
    }
    for (int r = 0; r < ROWS; r++) {
      if (!out[r]) continue;
      float both[TILE];
      store(both, sums[r][0] * factors[r]);
      store(both + LANES, sums[r][1] * factors[r]);
      for (size t = 0; t < smaller(TILE, width - j); t++) out[r][j + t] = narrow(both[t]);
    }
  }
}

/* to[s][.] += sum over ROWS rows of weights[r][s] * a[r][.], for s below `end`; `a` has rows of `stride`. */
static void spread(const float *weights, const float *a, size stride, size S, size end, float *to) {
  for (size j = 0; j < stride; j += LANES) {
    lanes parts[ROWS];
    for (int r = 0; r < ROWS; r++) parts[r] = load(a + r * stride + j);
    for (size s = 0; s < end; s++) {
      lanes total = load(to + s * stride + j);
      for (int r = 0; r < ROWS; r++) total += weights[r * S + s] * parts[r];
      store(to + s * stride + j, total);
    }
  }
}

/* One sequence and key head. */
static void forward_one(const job *x, size first, size T, size group, float *buffer) {
  size kw = x->k_width, S = rounded(T, TILE), W = rounded(x->w_width, TILE), each = x->h / x->g;
  float *k_t = buffer, *v = k_t + kw * S, *q_rows = v + S * W, *p = q_rows + ROWS * kw;
  memset(buffer, 0, (size_t)(q_rows - buffer) * sizeof(float));
  transpose(x->k + (first * x->g + group) * kw, T, kw, x->g * kw, k_t, S);
  copy(x->v + (first * x->g + group) * x->w_width, T, x->w_width, x->g * x->w_width, v, W);
  for (size head = group * each; head < (group + 1) * each; head++)
    for (size i = 0; i < T; i += ROWS) {
      number *o[ROWS];
      float shares[ROWS];
      size end = rounded(smaller(i + ROWS, T), TILE);
      for (size r = 0; r < ROWS; r++)
        copy(x->q + ((first + smaller(i + r, T - 1)) * x->h + head) * kw, 1, kw, kw, q_rows + r * kw, kw);
      products(q_rows, kw, k_t, kw, S, end, x->scale, p);
      for (size r = 0; r < ROWS; r++) {
        size at = (first + i + r) * x->h + head;
        float total, top = weigh(p + r * S, smaller(i + r + 1, T), end, &total);
        shares[r] = 1.0f / total;
        o[r] = i + r < T ? x->out + at * x->w_width : NULL;
        if (o[r] && x->logsum) x->logsum[at] = top + logf(total);
      }
      mixtures(p, v, W, S, end, o, x->w_width, shares);
    }
}

static void back_one(const job *x, size first, size T, size group, float *buffer) {
  size kw = x->k_width, ww = x->w_width, S = rounded(T, TILE), K = rounded(kw, TILE), W = rounded(ww, TILE);
  size each = x->h / x->g;
  float *k_t = buffer, *k = k_t + kw * S, *v_t = k + S * K, *dk_sum = v_t + ww * S, *dv_sum = dk_sum + S * K;
  float *q_rows = dv_sum + S * W, *do_rows = q_rows + ROWS * K, *p = do_rows + ROWS * W, *ds = p + ROWS * S;
  memset(buffer, 0, (size_t)(ds + ROWS * S - buffer) * sizeof(float));
  const number *keys = x->k + (first * x->g + group) * kw, *values = x->v + (first * x->g + group) * ww;
  transpose(keys, T, kw, x->g * kw, k_t, S);
  copy(keys, T, kw, x->g * kw, k, K);
  transpose(values, T, ww, x->g * ww, v_t, S);
  for (size head = group * each; head < (group + 1) * each; head++)
    for (size i = 0; i < T; i += ROWS) {
      size end = rounded(smaller(i + ROWS, T), TILE);
      number *to[ROWS];
      float scales[ROWS], deltas[ROWS];
      for (size r = 0; r < ROWS; r++) {
        size at = (first + smaller(i + r, T - 1)) * x->h + head;
        copy(x->q + at * kw, 1, kw, kw, q_rows + r * K, K);
        copy(x->dout + at * ww, 1, ww, ww, do_rows + r * W, W);
        to[r] = i + r < T ? x->dq + at * kw : NULL;
        scales[r] = x->scale;
        deltas[r] = 0;
        for (size j = 0; j < ww; j++) deltas[r] += do_rows[r * W + j] * wide(x->out[at * ww + j]);
      }
      products(q_rows, K, k_t, kw, S, end, x->scale, p);
      products(do_rows, W, v_t, ww, S, end, 1.0f, ds);
      for (size r = 0; r < ROWS; r++) {
        size valid = i + r < T ? i + r + 1 : 0;
        float low = valid ? x->logsum[(first + i + r) * x->h + head] : 0;
        for (size s = valid; s < end; s++) p[r * S + s] = -INFINITY;
        for (size s = 0; s < end; s += LANES) {
          lanes share = exponential(load(p + r * S + s) - low);
          store(p + r * S + s, share);
          store(ds + r * S + s, share * (load(ds + r * S + s) - deltas[r]));
        }
      }
      mixtures(ds, k, K, S, end, to, kw, scales);
      spread(ds, q_rows, K, S, end, dk_sum);
      spread(p, do_rows, W, S, end, dv_sum);
    }
  for (size t = 0; t < T; t++) {
    number *dk = x->dk + ((first + t) * x->g + group) * kw, *dv = x->dv + ((first + t) * x->g + group) * ww;
    for (size j = 0; j < kw; j++) dk[j] = narrow(dk_sum[t * K + j] * x->scale);
    for (size j = 0; j < ww; j++) dv[j] = narrow(dv_sum[t * W + j]);
  }
}

static size longest(const int64_t *lengths, size n) {
  size found = 0;
  for (size i = 0; i < n; i++) found = lengths[i] > found ? (size)lengths[i] : found;
  return found;
}

/* Every sequence and key head, each thread with room for `need` numbers; 1 when there is none, else 0. */
static int over_all(const job *x, const int64_t *starts, const int64_t *lengths, size n, size need,
                    void (*one)(const job *, size, size, size, float *)) {
  int failed = 0;
#pragma omp parallel if (n * x->g > 1)
  {
    float *buffer = room(need);
#pragma omp for schedule(dynamic)
    for (size i = 0; i < n * x->g; i++)
      if (buffer)
        one(x, starts[i / x->g], lengths[i / x->g], i % x->g, buffer);
      else
        failed = 1;
    free(buffer);
  }
  return failed;
}

/* Returns 0, or 1 when memory is short. `starts` are the first tokens of the sequences; logsum may be NULL. */
int NAMED(causal_attention)(const number *q, const number *k, const number *v, number *out, float *logsum,
                            const int64_t *starts, const int64_t *lengths, size n_sequences, size h, size g,
                            size k_width, size w_width, float scale) {
  job x = {q, k, v, out, logsum, NULL, NULL, NULL, NULL, h, g, k_width, w_width, scale};
  size S = rounded(longest(lengths, n_sequences), TILE);
  size need = S * (k_width + rounded(w_width, TILE) + ROWS) + ROWS * k_width;
  return over_all(&x, starts, lengths, n_sequences, need, forward_one);
}

int NAMED(causal_attention_back)(const number *q, const number *k, const number *v, number *out, float *logsum,
                                 const number *dout, number *dq, number *dk, number *dv, const int64_t *starts,
                                 const int64_t *lengths, size n_sequences, size h, size g, size k_width,
                                 size w_width, float scale) {
  job x = {q, k, v, out, logsum, dout, dq, dk, dv, h, g, k_width, w_width, scale};
  size S = rounded(longest(lengths, n_sequences), TILE), K = rounded(k_width, TILE), W = rounded(w_width, TILE);
  size need = S * (k_width + w_width + 2 * K + W + 2 * ROWS) + ROWS * (K + W);
  return over_all(&x, starts, lengths, n_sequences, need, back_one);
}
