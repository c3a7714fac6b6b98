/* What the pages of a decode step call of each other, said once: a page that defines one of these is held to it, too. */
#ifndef STEP_H
#define STEP_H
#include "products.h"
#ifndef LACKS_FORM

int NAMED(few_rows)(const number *x, const weight *matrix, const number *scales, const number *bias, number *y, size n,
                    size d, size o);
int NAMED(few_experts)(const number *x, const int64_t *experts, const float *weights, const weight *gate,
                       const number *gate_scales, const weight *up, const number *up_scales, const weight *down,
                       const number *down_scales, number *inner, float *parts, int64_t *order, number *y, size n,
                       size active, size all_experts, size d, size f);
void PLAIN(rms_norm)(const number *x, const float *weight, number *y, float *inverse, size n, size d, float eps);
void PLAIN(rope)(const number *restrict x, const float *restrict cosines, const float *restrict sines,
                 number *restrict y, size n, size h, size r, size interleaved, float turn);
void PLAIN(heads_sums)(const number *x, const number *maps, number *y, size n, size h, size k, size w, size x_token,
                       size x_head, size of_head, size of_row);
void PLAIN(heads_products)(const number *x, const number *maps, number *y, size n, size h, size k, size w, size x_token,
                           size x_head, size of_head);
int PLAIN(paged_attention)(const number *q, const void *cells, const float *cell_scales, const int64_t *table,
                           const int64_t *lengths, number *out, size n, size blocks, size block, size longest, size width,
                           size vector, size h, size g, size k, size w, size value_at, float scale);
int NAMED(latent_step)(const number *x, const weight *q_down, const number *q_down_scales, const float *q_norm,
                       const weight *q, const number *q_scales, const weight *kv_down, const number *kv_down_scales,
                       const float *kv_norm, const number *maps, const weight *o, const number *o_scales,
                       const float *cosines, const float *sines, void *cells, float *cell_scales, const int64_t *cell,
                       const int64_t *table, const int64_t *lengths, number *y, size n, size d, size q_rank, size h,
                       size p, size r, size w, size c, size width, size blocks, size block, size longest,
                       size interleaved, float norm_eps, float scale);
int NAMED(grouped_step)(const number *x, const weight *q, const number *q_scales, const weight *keys,
                        const number *keys_scales, const weight *values, const number *values_scales, const float *q_norm,
                        const float *k_norm, const weight *o, const number *o_scales, const float *cosines,
                        const float *sines, void *cells, float *cell_scales, const int64_t *cell, const int64_t *table,
                        const int64_t *lengths, number *y, size n, size d, size h, size g, size k, size r, size width,
                        size blocks, size block, size longest, size norms_all, size interleaved, float norm_eps,
                        float scale);
int NAMED(gated)(const number *x, const weight *gate, const number *gate_scales, const weight *up, const number *up_scales,
                 const weight *down, const number *down_scales, number *y, size n, size d, size f);
int NAMED(routed)(const number *x, const float *router, const float *bias, const weight *gate, const number *gate_scales,
                  const weight *up, const number *up_scales, const weight *down, const number *down_scales,
                  const weight *shared_gate, const number *shared_gate_scales, const weight *shared_up,
                  const number *shared_up_scales, const weight *shared_down, const number *shared_down_scales,
                  int64_t *experts, float *weights, number *y, size n, size active, size all_experts, size d, size f,
                  size shared, size is_softmax, size is_normed, float scale);

/* n numbers as codes of 8 bits and their scale (kernels/int8_entries.py). */
static inline void to_codes(const number *x, int8_t *codes, float *scale, size n) {
  float largest = 0, nothing = 0;
  for (size i = 0; i < n; i++) {
    float each = fabsf(wide(x[i]));
    largest = each > largest ? each : largest;
    nothing += each * 0; /* NaN where a number is none */
  }
  *scale = largest / 127 + nothing;
  float unit = *scale > 1e-30f ? *scale : 1e-30f;
  for (size i = 0; i < n; i++) codes[i] = (int8_t)rintf(wide(x[i]) / unit);
}

/* An entry of g vectors of `vector` numbers, and g that share the rest of its width, into its cell: as they are, or as codes
   where there are scales for them. */
static inline void write_entry(const number *entry, void *cells, float *cell_scales, size cell, size width, size vector,
                               size g) {
  if (!cell_scales) {
    memcpy((number *)cells + cell * width, entry, (size_t)width * sizeof(number));
    return;
  }
  int8_t *codes = (int8_t *)cells + cell * width;
  size first = g * vector, other = (width - first) / g;
  for (size i = 0; i < g; i++) {
    to_codes(entry + i * vector, codes + i * vector, cell_scales + cell * 2 * g + i, vector);
    to_codes(entry + first + i * other, codes + first + i * other, cell_scales + cell * 2 * g + g + i, other);
  }
}

/* Copy `rows` rows of `n` numbers, `from_stride` and `to_stride` apart. */
static inline void copy(const number *from, size from_stride, number *to, size to_stride, size rows, size n) {
  for (size i = 0; i < rows; i++) memcpy(to + i * to_stride, from + i * from_stride, (size_t)n * sizeof(number));
}
#endif
#endif
