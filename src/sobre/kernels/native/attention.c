/* Causal attention of ragged sequences, forward and back: a few queries at a time against the keys before them.

   Scores of ROWS queries are computed in registers, TILE keys at a time, from a transposed copy of the keys; the
   probabilities of these rows lie in the innermost cache, and only the log of their sum is kept. Back, they are made
   again, as in FlashAttention (arXiv 2307.08691, 2.3), whose mean of a row of d(probabilities), out . d(out), is taken from
   the output; dk and dv are summed over the queries of a key head in order, so that threads, which divide sequences and
   key heads, change no bit. What is multiplied lies in pairs along what is summed (lanes.h); sums are float32.

   Shapes: n tokens, h query heads, g key heads, k query/key width, w value width; contiguous. Inside one sequence and
   head: T tokens, S its keys rounded up to TILE, K and W widths rounded up to TILE, kp and wp widths in pairs. Forward,
   the tokens may be the last T of `keys` positions. */
#ifdef __AVX512F__
#define LANES 16
#endif
#include "lanes.h"

/* SIDES registers hold a tile; ROWS and KEYS keep twelve and eight sums in flight. */
enum { TILE = 16, SIDES = TILE / LANES, ROWS = 12 / SIDES, BLOCK = 24, KEYS = 8 / SIDES };

typedef struct {
  const number *q, *k, *v;
  number *out;   /* written forward, read back */
  float *logsum; /* kept for the way back; NULL when there is none */
  const number *dout;
  number *dq, *dk, *dv;
  size h, g, k_width, w_width;
  float scale;
} job;

static size smaller(size a, size b) { return a < b ? a : b; }

static size pairs_of(size width) { return (width + PAIR - 1) / PAIR; }

/* An odd number of tiles: rows a power of two apart would share the few places that a cache has for them. */
static size stride_of(size n) { return rounded(n, TILE) | TILE; }

/* Rows of one head lie apart in memory, where the processor does not foresee them. */
static void fetch(const number *rows, size n, size width, size stride) {
  for (size i = 0; i < n; i++)
    for (size j = 0; j < width; j += 64 / sizeof(number)) __builtin_prefetch(rows + i * stride + j);
}

/* to[j][i] = pair j of row i, for `rows` rows of `width`, `stride` apart; a line of `to` at a time. */
static void transpose(const number *from, size rows, size width, size stride, pair *to, size to_stride) {
  for (size begin = 0; begin < rows; begin += TILE) {
    size end = smaller(begin + TILE, rows);
    fetch(from + end * stride, smaller(TILE, rows - end), width, stride);
    for (size j = 0; j < width / PAIR; j++)
      for (size i = begin; i < end; i++) memcpy(to + j * to_stride + i, from + i * stride + j * PAIR, sizeof(pair));
    for (size i = begin; width % PAIR && i < end; i++)
      memcpy(to + width / PAIR * to_stride + i, from + i * stride + width - 1, sizeof(number));
  }
}

/* to[i / PAIR][j] = the numbers j of PAIR rows, 0 for one that is not there; rows of `width`, `stride` apart. */
static void across(const number *from, size rows, size width, size stride, pair *to, size to_stride) {
  number *numbers = (number *)to;
  for (size i = 0; i < rows; i += PAIR) {
    size begin = 0;
#ifdef BFLOAT16
    const number *row = from + i * stride;
    for (; begin + LANES <= width; begin += LANES) {
      shorts next = i + 1 < rows ? load_shorts(row + stride + begin) : (shorts){0};
      store_pairs(to + i / PAIR * to_stride + begin, side_by_side(load_shorts(row + begin), next));
    }
#endif
    for (size r = i; r < i + PAIR; r++)
      for (size j = begin; j < width; j++)
        numbers[(i / PAIR * to_stride + j) * PAIR + r % PAIR] = r < rows ? from[r * stride + j] : 0;
  }
}

/* out[r][s] = scale * a[r] . b_t[.][s], for ROWS rows of `width` pairs and s below `end` (a multiple of TILE). */
static void products(const pair *a, const pair *b_t, size width, size S, size end, float scale, float *out) {
  for (size s = 0; s < end; s += TILE) {
    lanes sums[ROWS][SIDES] = {{all(0)}};
    for (size j = 0; j < width; j++)
      for (int side = 0; side < SIDES; side++) {
        pairs b = load_pairs(b_t + j * S + s + side * LANES);
        for (int r = 0; r < ROWS; r++) sums[r][side] = multiply(sums[r][side], a[r * width + j], b);
      }
    for (int r = 0; r < ROWS; r++)
      for (int side = 0; side < SIDES; side++) store(out + r * S + s + side * LANES, sums[r][side] * scale);
  }
}

/* out[r][.] = factor[r] * sum over s below `end` of weights[r][s] * b[s][.], for ROWS rows; b has rows of `stride`. */
static void mixtures(const pair *weights, const pair *b, size stride, size S, size end, number *const *out, size width,
                     const float *factors) {
  for (size j = 0; j < stride; j += TILE) {
    lanes sums[ROWS][SIDES] = {{all(0)}};
    for (size s = 0; s < end / PAIR; s++)
      for (int side = 0; side < SIDES; side++) {
        pairs row = load_pairs(b + s * stride + j + side * LANES);
        for (int r = 0; r < ROWS; r++) sums[r][side] = multiply(sums[r][side], weights[r * (S / PAIR) + s], row);
      }
    for (int r = 0; r < ROWS; r++) {
      if (!out[r]) continue;
      number tile[TILE];
      for (int side = 0; side < SIDES; side++) put(tile + side * LANES, sums[r][side] * factors[r]);
      memcpy(out[r] + j, tile, (size_t)smaller(TILE, width - j) * sizeof(number));
    }
  }
}

/* to[s][.] += sum over `n` rows of weights[r][s] * a[r][.], for s below `end`, KEYS at a time; `a` has rows of `stride`. */
static void spread(const pair *weights, const pair *a, size n, size stride, size S, size end, float *to) {
  for (size s = 0; s < end; s += KEYS)
    for (size j = 0; j < stride; j += TILE) {
      lanes sums[KEYS][SIDES];
      for (int t = 0; t < KEYS; t++)
        for (int side = 0; side < SIDES; side++) sums[t][side] = load(to + (s + t) * stride + j + side * LANES);
      for (size r = 0; r < n; r++)
        for (int side = 0; side < SIDES; side++) {
          pairs row = load_pairs(a + r * stride + j + side * LANES);
          for (int t = 0; t < KEYS; t++) sums[t][side] = multiply(sums[t][side], weights[r * S + s + t], row);
        }
      for (int t = 0; t < KEYS; t++)
        for (int side = 0; side < SIDES; side++) store(to + (s + t) * stride + j + side * LANES, sums[t][side]);
    }
}

/* ROWS rows of S floats as pairs along each row, in `room` unless they are so already. */
static const pair *along(const float *rows, size S, size end, number *room) {
#ifdef BFLOAT16
  for (size r = 0; r < ROWS; r++)
    for (size s = 0; s < end; s += LANES) put(room + r * S + s, load(rows + r * S + s));
  return (const pair *)room;
#else
  (void)S, (void)end, (void)room;
  return rows;
#endif
}

/* Rows of scores and of dout . v, `low` the logs (base 2) of their sums and `mean` the means of what comes back, to probabilities
   and d(scores) as pairs of rows, 0 from `end` to `beyond`; the latter along each row, too, where pairs are not rows. */
static void weigh_back(const float *scores, const float *back, const float *low, const float *mean, size S, size end,
                       size beyond, pair *p_by_rows, pair *ds_by_rows, number *ds_along) {
  for (size r = 0; r < ROWS; r += PAIR, p_by_rows += S, ds_by_rows += S) {
    size second = r + PAIR - 1;
    for (size s = 0; s < end; s += LANES) {
      lanes p = power_of_two(load(scores + r * S + s) * LOG2_E - low[r]), ds = p * (load(back + r * S + s) - mean[r]);
      lanes p_next = p, ds_next = ds;
      if (PAIR > 1) {
        p_next = power_of_two(load(scores + second * S + s) * LOG2_E - low[second]);
        ds_next = p_next * (load(back + second * S + s) - mean[second]);
        put(ds_along + r * S + s, ds);
        put(ds_along + second * S + s, ds_next);
      }
      store_pairs(p_by_rows + s, both(p, p_next));
      store_pairs(ds_by_rows + s, both(ds, ds_next));
    }
    memset(p_by_rows + end, 0, (size_t)(beyond - end) * sizeof(pair));
    memset(ds_by_rows + end, 0, (size_t)(beyond - end) * sizeof(pair));
  }
}

static float dot(const number *a, const number *b, size n) {
  lanes sums = all(0);
  float rest = 0;
  size i = 0;
  for (; i + LANES <= n; i += LANES) sums += get(a + i) * get(b + i);
  for (; i < n; i++) rest += wide(a[i]) * wide(b[i]);
  return sum(sums) + rest;
}

static void leave(const float *sums, float scale, number *to, size n) {
  size j = 0;
  for (; j + LANES <= n; j += LANES) put(to + j, load(sums + j) * scale);
  for (; j < n; j++) to[j] = narrow(sums[j] * scale);
}

static size forward_room(const job *x, size S) {
  size kp = pairs_of(x->k_width), W = rounded(x->w_width, TILE);
  return kp * S + S / PAIR * W + ROWS * kp + ROWS * S + ROWS * S / PAIR;
}

/* One sequence and key head; `first` of its queries, `first_key` of its keys. */
static void forward_tail(const job *x, size first, size T, size first_key, size keys, size group, float *buffer) {
  size kw = x->k_width, ww = x->w_width, kp = pairs_of(kw), S = stride_of(keys), W = rounded(ww, TILE);
  size each = x->h / x->g, before = keys - T;
  pair *k_t = (pair *)buffer, *v = k_t + kp * S, *q_rows = v + S / PAIR * W;
  float *p = (float *)(q_rows + ROWS * kp);
  number *weights = (number *)(p + ROWS * S);
  memset(buffer, 0, (size_t)((float *)weights - buffer) * sizeof(float));
  transpose(x->k + (first_key * x->g + group) * kw, keys, kw, x->g * kw, k_t, S);
  across(x->v + (first_key * x->g + group) * ww, keys, ww, x->g * ww, v, W);
  for (size head = group * each; head < (group + 1) * each; head++)
    for (size i = 0; i < T; i += ROWS) {
      number *o[ROWS];
      float shares[ROWS];
      size end = rounded(before + smaller(i + ROWS, T), TILE), next = smaller(i + ROWS, T);
      fetch(x->q + ((first + next) * x->h + head) * kw, smaller(ROWS, T - next), kw, x->h * kw);
      for (size r = 0; r < ROWS; r++) {
        size at = (first + smaller(i + r, T - 1)) * x->h + head;
        memcpy(q_rows + r * kp, x->q + at * kw, (size_t)kw * sizeof(number));
      }
      products(q_rows, k_t, kp, S, end, x->scale, p);
      for (size r = 0; r < ROWS; r++) {
        size at = (first + i + r) * x->h + head;
        float total, top = weigh(p + r * S, before + smaller(i + r + 1, T), end, &total);
        shares[r] = 1.0f / total;
        o[r] = i + r < T ? x->out + at * ww : NULL;
        if (o[r] && x->logsum) x->logsum[at] = top + logf(total);
      }
      mixtures(along(p, S, end, weights), v, W, S, end, o, ww, shares);
    }
}

static void forward_one(const job *x, size first, size T, size group, float *buffer) {
  forward_tail(x, first, T, first, T, group, buffer);
}

static size back_room(const job *x, size S) {
  size kp = pairs_of(x->k_width), wp = pairs_of(x->w_width);
  size K = rounded(x->k_width, TILE), W = rounded(x->w_width, TILE);
  size rows = ROWS * (kp + wp) + BLOCK / PAIR * (K + W + 2 * S) + ROWS * S * 2 + ROWS * S / PAIR;
  return S * (kp + wp + K / PAIR + K + W) + rows;
}

/* A BLOCK of queries leaves its part in dq; dk and dv take theirs from it at once, which spares passes over their sums. */
static void back_one(const job *x, size first, size T, size group, float *buffer) {
  size kw = x->k_width, ww = x->w_width, kp = pairs_of(kw), wp = pairs_of(ww), each = x->h / x->g;
  size S = stride_of(T), K = rounded(kw, TILE), W = rounded(ww, TILE);
  pair *k_t = (pair *)buffer, *v_t = k_t + kp * S, *k = v_t + wp * S, *q_rows = k + S / PAIR * K;
  pair *do_rows = q_rows + ROWS * kp, *q_across = do_rows + ROWS * wp, *do_across = q_across + BLOCK / PAIR * K;
  float *dk_sum = (float *)(do_across + BLOCK / PAIR * W), *dv_sum = dk_sum + S * K;
  float *scores = dv_sum + S * W, *back = scores + ROWS * S;
  pair *p_by_rows = (pair *)(back + ROWS * S), *ds_by_rows = p_by_rows + BLOCK / PAIR * S;
  number *ds_along = (number *)(ds_by_rows + BLOCK / PAIR * S);
  memset(buffer, 0, (size_t)(scores - buffer) * sizeof(float));
  const number *keys = x->k + (first * x->g + group) * kw, *values = x->v + (first * x->g + group) * ww;
  transpose(keys, T, kw, x->g * kw, k_t, S);
  transpose(values, T, ww, x->g * ww, v_t, S);
  across(keys, T, kw, x->g * kw, k, K);
  for (size head = group * each; head < (group + 1) * each; head++)
    for (size begin = 0; begin < T; begin += BLOCK) {
      size last = smaller(begin + BLOCK, T), beyond = rounded(last, TILE), done = 0;
      const number *q_block = x->q + ((first + begin) * x->h + head) * kw;
      const number *do_block = x->dout + ((first + begin) * x->h + head) * ww;
      size next = smaller(BLOCK, T - last);
      fetch(q_block + BLOCK * x->h * kw, next, kw, x->h * kw);
      fetch(do_block + BLOCK * x->h * ww, next, ww, x->h * ww);
      fetch(x->out + ((first + last) * x->h + head) * ww, next, ww, x->h * ww);
      across(q_block, last - begin, kw, x->h * kw, q_across, K);
      across(do_block, last - begin, ww, x->h * ww, do_across, W);
      for (size i = begin; i < last; i += ROWS, done += ROWS / PAIR) {
        size end = rounded(smaller(i + ROWS, T), TILE);
        number *to[ROWS];
        float scales[ROWS], low[ROWS], mean[ROWS];
        for (size r = 0; r < ROWS; r++) {
          size at = (first + smaller(i + r, T - 1)) * x->h + head;
          memcpy(q_rows + r * kp, x->q + at * kw, (size_t)kw * sizeof(number));
          memcpy(do_rows + r * wp, x->dout + at * ww, (size_t)ww * sizeof(number));
          to[r] = i + r < T ? x->dq + at * kw : NULL;
          scales[r] = x->scale;
          low[r] = x->logsum[at] * LOG2_E;
          mean[r] = dot(x->out + at * ww, x->dout + at * ww, ww);
        }
        products(q_rows, k_t, kp, S, end, x->scale, scores);
        products(do_rows, v_t, wp, S, end, 1.0f, back);
        if (i == 0) mean[0] = back[0]; /* the only key that it sees: d(score) is 0, whatever the order of sums */
        for (size r = 0; r < ROWS; r++)
          for (size s = i + r < T ? i + r + 1 : 0; s < end; s++) scores[r * S + s] = -INFINITY;
        pair *p = p_by_rows + done * S, *ds = ds_by_rows + done * S;
        weigh_back(scores, back, low, mean, S, end, beyond, p, ds, ds_along);
        mixtures(PAIR > 1 ? (pair *)ds_along : ds, k, K, S, end, to, kw, scales);
      }
      spread(ds_by_rows, q_across, done, K, S, beyond, dk_sum);
      spread(p_by_rows, do_across, done, W, S, beyond, dv_sum);
    }
  for (size t = 0; t < T; t++) {
    leave(dk_sum + t * K, x->scale, x->dk + ((first + t) * x->g + group) * kw, kw);
    leave(dv_sum + t * W, 1.0f, x->dv + ((first + t) * x->g + group) * ww, ww);
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
  size S = stride_of(longest(lengths, n_sequences));
  return over_all(&x, starts, lengths, n_sequences, forward_room(&x, S), forward_one);
}

/* The same of one sequence, whose queries are the last T of its `keys` positions. */
int NAMED(tail_attention)(const number *q, const number *k, const number *v, number *out, size T, size keys, size h,
                          size g, size k_width, size w_width, float scale) {
  job x = {q, k, v, out, NULL, NULL, NULL, NULL, NULL, h, g, k_width, w_width, scale};
  int failed = 0;
#pragma omp parallel if (g > 1)
  {
    float *buffer = room(forward_room(&x, stride_of(keys)));
#pragma omp for schedule(dynamic)
    for (size group = 0; group < g; group++)
      if (buffer)
        forward_tail(&x, 0, T, 0, keys, group, buffer);
      else
        failed = 1;
    free(buffer);
  }
  return failed;
}

int NAMED(causal_attention_back)(const number *q, const number *k, const number *v, number *out, float *logsum,
                                 const number *dout, number *dq, number *dk, number *dv, const int64_t *starts,
                                 const int64_t *lengths, size n_sequences, size h, size g, size k_width, size w_width,
                                 float scale) {
  job x = {q, k, v, out, logsum, dout, dq, dk, dv, h, g, k_width, w_width, scale};
  size S = stride_of(longest(lengths, n_sequences));
  return over_all(&x, starts, lengths, n_sequences, back_room(&x, S), back_one);
}

#ifdef BFLOAT16
int multiplies_bfloat16(void) {
#ifdef ROUNDS
  return 1;
#else
  return 0;
#endif
}
#endif
