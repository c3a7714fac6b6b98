/* n new tokens through grouped-query attention (models/gqa.py), from their normed states to what is added to them: as
   latent.c does it for latents.

   Shapes: x (n, d); `q` (h k, d), `keys` and `values` (g k, d), `o` (d, h k); the norms' weights (k), or (h k) and (g k)
   where they run over all heads, or NULL; the first r numbers of a head are rotated, cosines and sines (n, r / 2); cells of
   `width` numbers, keys before values. The rest as in latent.c. */
#include "step.h"
#ifndef LACKS_FORM

/* Rotate the first r of the k numbers of each head, in place; `plain` and `turned` have n h r numbers. */
static void rotate(number *x, const float *cosines, const float *sines, number *plain, number *turned, size n, size h,
                   size k, size r, size interleaved) {
  copy(x, k, plain, r, n * h, r);
  PLAIN(rope)(plain, cosines, sines, turned, n, h, r, interleaved, 1);
  copy(turned, r, x, k, n * h, r);
}

/* Returns 0, or 1 when memory is short. */
int NAMED(grouped_step)(const number *x, const weight *q, const number *q_scales, const weight *keys,
                        const number *keys_scales, const weight *values, const number *values_scales, const float *q_norm,
                        const float *k_norm, const weight *o, const number *o_scales, const float *cosines,
                        const float *sines, void *cells, float *cell_scales, const int64_t *cell, const int64_t *table,
                        const int64_t *lengths, number *y, size n, size d, size h, size g, size k, size r, size width,
                        size blocks, size block, size longest, size norms_all, size interleaved, float norm_eps,
                        float scale) {
  number *queries = fresh((n * (2 * h * k + 2 * g * k + 2 * h * r) + width) * (size)sizeof(number));
  if (!queries) return 1;
  number *new_keys = queries + n * h * k, *new_values = new_keys + n * g * k, *mixed = new_values + n * g * k;
  number *plain = mixed + n * h * k, *turned = plain + n * h * r, *entry = turned + n * h * r;
  int failed = NAMED(few_rows)(x, q, q_scales, NULL, queries, n, d, h * k);
  failed |= NAMED(few_rows)(x, keys, keys_scales, NULL, new_keys, n, d, g * k);
  failed |= NAMED(few_rows)(x, values, values_scales, NULL, new_values, n, d, g * k);
  if (q_norm) {
    PLAIN(rms_norm)(queries, q_norm, queries, NULL, norms_all ? n : n * h, norms_all ? h * k : k, norm_eps);
    PLAIN(rms_norm)(new_keys, k_norm, new_keys, NULL, norms_all ? n : n * g, norms_all ? g * k : k, norm_eps);
  }
  rotate(queries, cosines, sines, plain, turned, n, h, k, r, interleaved);
  rotate(new_keys, cosines, sines, plain, turned, n, g, k, r, interleaved);
  for (size i = 0; i < n; i++) {
    copy(new_keys + i * g * k, 0, entry, 0, 1, g * k);
    copy(new_values + i * g * k, 0, entry + g * k, 0, 1, g * k);
    write_entry(entry, cells, cell_scales, cell[i], width, k, g);
  }
  failed |= PLAIN(paged_attention)(queries, cells, cell_scales, table, lengths, mixed, n, blocks, block, longest, width, k, h,
                                   g, k, k, g * k, scale);
  failed |= NAMED(few_rows)(mixed, o, o_scales, NULL, y, n, h * k, d);
  free(queries);
  return failed;
}
#endif
