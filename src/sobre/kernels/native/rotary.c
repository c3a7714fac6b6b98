/* Rotary embedding; and the queries, keys and values of latent attention put together from its products, rotation
   included, in one pass each way.

   Shapes: n tokens (m of keys, more where a sequence is divided), h heads, k query/key width, of which the last r are
   rotary, w value width; all contiguous. Angles are float32, cosines and sines of r / 2 pairs for each token. */
#include "lanes.h"

#define MANY 16384 /* numbers that are worth a second thread */

/* Pairs (0, 1), (2, 3), ... when interleaved, else (0, half), (1, half + 1), ...; `turn` is 1, or -1 for back. */
static inline void rotate(const number *restrict a, number *restrict to, const float *restrict c,
                          const float *restrict s, size half, size interleaved, float turn) {
  const number *b = a + half;
  number *to_b = to + half;
  size t = 0;
#ifdef BFLOAT16
  for (; interleaved && t + LANES <= half; t += LANES) { /* a pair of them is a word */
    words pair;
    memcpy(&pair, a + 2 * t, sizeof pair);
    lanes even = (lanes)(pair << 16), odd = (lanes)(pair & 0xFFFF0000), cosine = load(c + t), sine = load(s + t) * turn;
    pair = both(even * cosine - odd * sine, even * sine + odd * cosine);
    memcpy(to + 2 * t, &pair, sizeof pair);
  }
#endif
  for (; interleaved && t < half; t++) {
    float even = wide(a[2 * t]), odd = wide(a[2 * t + 1]), sine = turn * s[t];
    to[2 * t] = narrow(even * c[t] - odd * sine);
    to[2 * t + 1] = narrow(even * sine + odd * c[t]);
  }
  for (; t + LANES <= half; t += LANES) {
    lanes first = get(a + t), second = get(b + t), cosine = load(c + t), sine = load(s + t) * turn;
    put(to + t, first * cosine - second * sine);
    put(to_b + t, first * sine + second * cosine);
  }
  for (; t < half; t++) {
    float first = wide(a[t]), second = wide(b[t]), sine = turn * s[t];
    to[t] = narrow(first * c[t] - second * sine);
    to_b[t] = narrow(first * sine + second * c[t]);
  }
}

void NAMED(rope)(const number *restrict x, const float *restrict cosines, const float *restrict sines,
                 number *restrict y, size n, size h, size r, size interleaved, float turn) {
  size half = r / 2;
#pragma omp parallel for if (n * h * r > MANY)
  for (size i = 0; i < n; i++)
    for (size j = i * h; j < (i + 1) * h; j++)
      rotate(x + j * r, y + j * r, cosines + i * half, sines + i * half, half, interleaved, turn);
}

/* A few numbers, for which a call of memcpy would take longer. */
static inline void copy(number *restrict to, const number *restrict from, size n) {
  size j = 0;
  for (; j + LANES <= n; j += LANES) memcpy(to + j, from + j, LANES * sizeof(number));
  for (; j < n; j++) to[j] = from[j];
}

/* q_out: q with its rotary part turned. k_out: of kv (m, h, k - r + w) the first numbers of each head, then k_rope (m, r),
   which is turned already and the same for all heads. v_out: the last numbers. */
void NAMED(latent_heads)(const number *q, const number *kv, const number *k_rope, const float *cosines,
                         const float *sines, number *q_out, number *k_out, number *v_out, size n, size m, size h,
                         size k, size w, size r, size interleaved) {
  size plain = k - r, half = r / 2;
#pragma omp parallel for if (n * h * k > MANY)
  for (size i = 0; i < n; i++)
    for (size j = i * h; j < (i + 1) * h; j++) {
      copy(q_out + j * k, q + j * k, plain);
      rotate(q + j * k + plain, q_out + j * k + plain, cosines + i * half, sines + i * half, half, interleaved, 1);
    }
#pragma omp parallel for if (m * h * k > MANY)
  for (size i = 0; i < m; i++)
    for (size j = i * h; j < (i + 1) * h; j++) {
      copy(k_out + j * k, kv + j * (plain + w), plain);
      copy(k_out + j * k + plain, k_rope + i * r, r);
      copy(v_out + j * w, kv + j * (plain + w) + plain, w);
    }
}

/* The gradients of q, kv and k_rope from those of the three above. Returns 0, or 1 when memory is short. */
int NAMED(latent_heads_back)(const number *dq_out, const number *dk_out, const number *dv_out, const float *cosines,
                             const float *sines, number *dq, number *dkv, number *dk_rope, size n, size m, size h,
                             size k, size w, size r, size interleaved) {
  size plain = k - r, half = r / 2;
  int failed = 0;
#pragma omp parallel for if (n * h * k > MANY)
  for (size i = 0; i < n; i++)
    for (size j = i * h; j < (i + 1) * h; j++) {
      copy(dq + j * k, dq_out + j * k, plain);
      rotate(dq_out + j * k + plain, dq + j * k + plain, cosines + i * half, sines + i * half, half, interleaved, -1);
    }
#pragma omp parallel if (m * h * k > MANY)
  {
    float *sums = room(r);
    if (!sums) failed = 1;
#pragma omp for
    for (size i = 0; i < m; i++) {
      if (!sums) continue;
      memset(sums, 0, (size_t)r * sizeof(float));
      for (size j = i * h; j < (i + 1) * h; j++) {
        copy(dkv + j * (plain + w), dk_out + j * k, plain);
        copy(dkv + j * (plain + w) + plain, dv_out + j * w, w);
        for (size t = 0; t < r; t++) sums[t] += wide(dk_out[j * k + plain + t]);
      }
      for (size t = 0; t < r; t++) dk_rope[i * r + t] = narrow(sums[t]);
    }
    free(sums);
  }
  return failed;
}
