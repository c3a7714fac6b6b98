/* All layers of a decode step: n new tokens, from their embeddings to the final norm. A layer writes the entries of all of
   them before it reads any, so that tokens of one sequence see each other up to the own one. What each layer is made of
   stands in a table (layers.py makes it once for as long as the weights stay the same).

   Shapes: x (n, d), which the layers add to, and y (n, d), its norm; cosines and sines of every position, `half` each;
   `cells` are those of the first layer, numbers or codes, the next one's lie `of_layer` of them further, as their scales (or
   NULL) `of_scales`; `experts` (routing layers, n, active).
   The rest as in latent.c, grouped.c and routed.c. */
#include "step.h"
#ifndef LACKS_FORM

typedef struct {
  const weight *codes;
  const number *scales;
} matrix;

struct latent {
  matrix q_down, q, kv_down, o;
  const float *q_norm, *kv_norm;
  const number *maps;
  size q_rank, h, p, r, w, c, interleaved;
  float norm_eps, scale;
};

struct grouped {
  matrix q, k, v, o;
  const float *q_norm, *k_norm;
  size h, g, k_width, r, norms_all, interleaved;
  float norm_eps, scale;
};

struct gated {
  matrix gate, up, down;
  size f;
};

struct routed {
  const float *router, *bias;
  matrix gate, up, down;
  struct gated shared;
  size active, all_experts, f, is_softmax, is_normed;
  float scale;
};

/* A layer has one kind of attention and one of feed-forward; the other pointer is NULL. */
struct layer {
  const float *attn_norm, *ffn_norm;
  const struct latent *latent;
  const struct grouped *grouped;
  const struct gated *gated;
  const struct routed *routed;
  float eps;
};

/* Bytes of a row of the table: what layers.py believes, too. */
size NAMED(layer_bytes)(void) { return (size)(sizeof(struct layer) + sizeof(struct latent) + sizeof(struct grouped)
                                              + sizeof(struct gated) + sizeof(struct routed)); }

/* Returns 0, or 1 when memory is short. */
int NAMED(layers)(number *x, const struct layer *each, const float *norm, const float *cosines_of, const float *sines_of,
                  void *cells, float *cell_scales, const int64_t *cell, const int64_t *table, const int64_t *lengths,
                  int64_t *experts, number *y, size n_layers, size n, size d, size half, size of_layer, size of_scales,
                  size width, size blocks, size block, size longest, size most_active, float eps) {
  float *cosines = room(n * (2 * half + most_active + d));
  if (!cosines) return 1;
  float *sines = cosines + n * half, *weights = sines + n * half;
  number *part = (number *)(weights + n * most_active);
  int failed = 0;
  for (size i = 0; i < n; i++) {
    memcpy(cosines + i * half, cosines_of + (lengths[i] - 1) * half, (size_t)half * sizeof(float));
    memcpy(sines + i * half, sines_of + (lengths[i] - 1) * half, (size_t)half * sizeof(float));
  }
  for (const struct layer *at = each; at < each + n_layers; at++) {
    PLAIN(rms_norm)(x, at->attn_norm, y, NULL, n, d, at->eps);
    if (at->latent) {
      const struct latent *a = at->latent;
      failed |= NAMED(latent_step)(y, a->q_down.codes, a->q_down.scales, a->q_norm, a->q.codes, a->q.scales,
                                   a->kv_down.codes, a->kv_down.scales, a->kv_norm, a->maps, a->o.codes, a->o.scales,
                                   cosines, sines, cells, cell_scales, cell, table, lengths, part, n, d, a->q_rank, a->h, a->p, a->r,
                                   a->w, a->c, width, blocks, block, longest, a->interleaved, a->norm_eps, a->scale);
    } else {
      const struct grouped *a = at->grouped;
      failed |= NAMED(grouped_step)(y, a->q.codes, a->q.scales, a->k.codes, a->k.scales, a->v.codes, a->v.scales, a->q_norm,
                                    a->k_norm, a->o.codes, a->o.scales, cosines, sines, cells, cell_scales, cell, table, lengths, part,
                                    n, d, a->h, a->g, a->k_width, a->r, width, blocks, block, longest, a->norms_all,
                                    a->interleaved, a->norm_eps, a->scale);
    }
    add_rows(x, part, n * d);
    PLAIN(rms_norm)(x, at->ffn_norm, y, NULL, n, d, at->eps);
    if (at->gated) {
      const struct gated *f = at->gated;
      failed |= NAMED(gated)(y, f->gate.codes, f->gate.scales, f->up.codes, f->up.scales, f->down.codes, f->down.scales,
                             part, n, d, f->f);
    } else {
      const struct routed *f = at->routed;
      failed |= NAMED(routed)(y, f->router, f->bias, f->gate.codes, f->gate.scales, f->up.codes, f->up.scales,
                              f->down.codes, f->down.scales, f->shared.gate.codes, f->shared.gate.scales,
                              f->shared.up.codes, f->shared.up.scales, f->shared.down.codes, f->shared.down.scales, experts,
                              weights, part, n, f->active, f->all_experts, d, f->f, f->shared.f, f->is_softmax,
                              f->is_normed, f->scale);
      experts += n * f->active;
    }
    add_rows(x, part, n * d);
    cells = (char *)cells + of_layer * (cell_scales ? 1 : (size)sizeof(number));
    if (cell_scales) cell_scales += of_scales;
  }
  PLAIN(rms_norm)(x, norm, y, NULL, n, d, eps);
  free(cosines);
  return failed;
}
#endif
