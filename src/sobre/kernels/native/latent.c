/* n new tokens through latent attention in its absorbed form (models/mla.py), from their normed states to what is added to
   them: the other pages' functions one after the other, without a look back at Python between them.

   Shapes: x (n, d); `q_down` (q_rank, d) or NULL, `q` (h (p + r), q_rank or d); `kv_down` (c + r, d); `maps` (h, p + w, c),
   from the latent to a head's key and value; `o` (d, h w); cosines and sines (n, r / 2); cells of `width` numbers (c + r),
   or of codes with two scales, of which number `cell` of each token is written before it is read; table, lengths, blocks,
   block and longest as in paged.c. */
#include "step.h"
#ifndef LACKS_FORM

/* Returns 0, or 1 when memory is short. */
int NAMED(latent_step)(const number *x, const weight *q_down, const number *q_down_scales, const float *q_norm,
                       const weight *q, const number *q_scales, const weight *kv_down, const number *kv_down_scales,
                       const float *kv_norm, const number *maps, const weight *o, const number *o_scales,
                       const float *cosines, const float *sines, void *cells, float *cell_scales, const int64_t *cell,
                       const int64_t *table, const int64_t *lengths, number *y, size n, size d, size q_rank, size h,
                       size p, size r, size w, size c, size width, size blocks, size block, size longest,
                       size interleaved, float norm_eps, float scale) {
  size entry = c + r, of_query = p + r, of_map = (p + w) * c;
  size of_token = q_rank + h * of_query + entry + 2 * (h + 1) * r + h * (c + entry) + h * (c + w);
  number *latent_q = fresh(n * of_token * (size)sizeof(number));
  if (!latent_q) return 1;
  number *queries = latent_q + n * q_rank, *entries = queries + n * h * of_query, *plain = entries + n * entry;
  number *turned = plain + n * (h + 1) * r, *folded = turned + n * (h + 1) * r, *absorbed = folded + n * h * c;
  number *mixed = absorbed + n * h * entry, *values = mixed + n * h * c;
  int failed = 0;
  if (q_down) {
    failed |= NAMED(few_rows)(x, q_down, q_down_scales, NULL, latent_q, n, d, q_rank);
    PLAIN(rms_norm)(latent_q, q_norm, latent_q, NULL, n, q_rank, norm_eps);
  }
  failed |= NAMED(few_rows)(q_down ? latent_q : x, q, q_scales, NULL, queries, n, q_down ? q_rank : d, h * of_query);
  failed |= NAMED(few_rows)(x, kv_down, kv_down_scales, NULL, entries, n, d, entry);
  for (size i = 0; i < n; i++) { /* the rotary key as one more head */
    PLAIN(rms_norm)(entries + i * entry, kv_norm, entries + i * entry, NULL, 1, c, norm_eps);
    copy(queries + i * h * of_query + p, of_query, plain + i * (h + 1) * r, r, h, r);
    copy(entries + i * entry + c, r, plain + (i * (h + 1) + h) * r, r, 1, r);
  }
  PLAIN(rope)(plain, cosines, sines, turned, n, h + 1, r, interleaved, 1);
  for (size i = 0; i < n; i++) {
    copy(turned + (i * (h + 1) + h) * r, r, entries + i * entry + c, r, 1, r);
    write_entry(entries + i * entry, cells, cell_scales, cell[i], width, c, 1);
  }
  PLAIN(heads_sums)(queries, maps, folded, n, h, p, c, h * of_query, of_query, of_map, c);
  copy(folded, c, absorbed, entry, n * h, c);
  for (size i = 0; i < n; i++) copy(turned + i * (h + 1) * r, r, absorbed + i * h * entry + c, entry, h, r);
  failed |= PLAIN(paged_attention)(absorbed, cells, cell_scales, table, lengths, mixed, n, blocks, block, longest, width, c, h,
                                   1, entry, c, 0, scale);
  PLAIN(heads_products)(mixed, maps + p * c, values, n, h, c, w, h * c, c, of_map);
  failed |= NAMED(few_rows)(values, o, o_scales, NULL, y, n, h * w, d);
  free(latent_q);
  return failed;
}
#endif
