/* See spikegpt.h. What is computed is specified by engine/fixed/reference.py of spikegpt, whose bits these are. */
#include "spikegpt.h"

typedef struct {
  const int16_t *gain, *bias;
  int32_t shift;
} sg_norm;

typedef struct {
  const int16_t *multiplier;
  int32_t shift;
} sg_mixing;

/* A matrix [inputs][outputs] and the neuron in front of it; square < 0: the neuron reads its input itself. */
typedef struct {
  int32_t inputs, outputs, groups;
  const uint8_t *weight;
  const int16_t *multiplier; /* [groups][outputs] */
  int32_t shift, width, event_multiplier, event_offset, event_shift, square;
  int is_signed;
} sg_matrix;

typedef struct {
  sg_norm norm;
  sg_mixing mix_k, mix_v, mix_r;
  const int32_t *first, *decay; /* null in a channel mix */
  sg_matrix key, value, receptance, output;
} sg_mix;

#include "model.h"

uint32_t sg_events, sg_saturations;

#define SG_TOP(width) (((int32_t)1 << ((width)-1)) - 1)

static int32_t half(int32_t by) { return (int32_t)(((uint32_t)1 << by) >> 1); }

/* x / 2^by to the nearest, halves up. */
static int32_t rounded(int32_t x, int32_t by) { return (x + half(by)) >> by; }

static int32_t cut(int32_t x, int32_t width) {
  const int32_t top = SG_TOP(width);
#ifdef SG_COUNT_SATURATIONS
  sg_saturations += x > top || x < -top;
#endif
  return x > top ? top : x < -top ? -top : x;
}

static int bit_length(uint32_t x) {
  int bits = 0;
  for (; x; x >>= 1) ++bits;
  return bits;
}

static int16_t gained(int32_t normalised, const sg_norm *n, int32_t c) {
  const int32_t kept = cut(normalised, SG_NORM_WIDTH);
  return (int16_t)cut(rounded(kept * n->gain[c], n->shift) + n->bias[c], SG_NORM_WIDTH);
}

static void norm(const int16_t *x, const sg_norm *n, int16_t *out) {
  int32_t total = 0, c, exponent, inverse;
  int64_t squares = 0;
  uint32_t variance;
  int32_t mean;
  for (c = 0; c < SG_CHANNELS; ++c) total += x[c];
  mean = (int32_t)(((int64_t)total * SG_MEAN + ((int32_t)1 << 23)) >> 24);
  for (c = 0; c < SG_CHANNELS; ++c) {
    const int32_t distance = cut(x[c] - mean, SG_RESIDUAL_WIDTH);
    squares += distance * distance;
  }
  variance = (uint32_t)((squares * SG_MEAN) >> 24) + SG_EPSILON;
  exponent = (bit_length(variance) - 1) / 2;
  inverse = sg_table_rsqrt[(int32_t)(((uint64_t)variance * SG_RSQRT_QUARTER) >> (2 * exponent)) - SG_RSQRT_QUARTER];
  for (c = 0; c < SG_CHANNELS; ++c)
    out[c] = gained(rounded(cut(x[c] - mean, SG_RESIDUAL_WIDTH) * inverse, SG_TABLE_BITS + exponent - SG_NORM_FRACTION), n, c);
}

/* What the neuron in front of `m` says to x. */
static int32_t event_of(const sg_matrix *m, int32_t x) {
  int32_t size = m->is_signed && x < 0 ? -x : x, count;
  if (size <= 0) return 0;
  if (m->square >= 0) {
    size = (size * size) >> m->square;
    if (size > SG_SQUARE_TOP) size = SG_SQUARE_TOP;
  }
  count = size * m->event_multiplier + m->event_offset;
  count = count < 0 ? 0 : count >> m->event_shift;
  if (count > SG_LEVELS) count = SG_LEVELS;
  if (count < SG_SMALLEST) return 0;
  return x < 0 ? -count : count;
}

/* Adds an event's row of weights to the sums; nothing else of the matrix is read. */
static void add_row(const sg_matrix *m, int32_t input, int32_t event, int32_t *sums) {
  int32_t o;
#if SG_BITS == 8
  const int8_t *row = (const int8_t *)m->weight + input * m->outputs;
  for (o = 0; o < m->outputs; ++o) sums[o] += event * row[o];
#else
  const uint8_t *row = m->weight + input * ((m->outputs + 1) / 2);
  for (o = 0; o + 1 < m->outputs; o += 2, ++row) {
    sums[o] += event * ((*row & 15) - 8);
    sums[o + 1] += event * ((*row >> 4) - 8);
  }
  if (o < m->outputs) sums[o] += event * ((*row & 15) - 8);
#endif
  ++sg_events;
}

/* out = events x weights, in the format of the outputs. */
static void multiply(const sg_matrix *m, const int8_t *events, int32_t *out) {
  int32_t i, o;
#if SG_GROUPED
  static int32_t sums[SG_WIDEST];
  int32_t group, begin = 0;
  for (o = 0; o < m->outputs; ++o) out[o] = 0;
  for (group = 0; group < m->groups; ++group, begin += SG_GROUP) {
    const int32_t end = m->groups == 1 || m->inputs < begin + SG_GROUP ? m->inputs : begin + SG_GROUP;
    for (o = 0; o < m->outputs; ++o) sums[o] = 0;
    for (i = begin; i < end; ++i)
      if (events[i]) add_row(m, i, events[i], sums);
    for (o = 0; o < m->outputs; ++o) out[o] += sums[o] * m->multiplier[group * m->outputs + o];
  }
  for (o = 0; o < m->outputs; ++o) out[o] = cut(rounded(out[o], m->shift), m->width);
#else
  for (o = 0; o < m->outputs; ++o) out[o] = 0;
  for (i = 0; i < m->inputs; ++i)
    if (events[i]) add_row(m, i, events[i], out);
  for (o = 0; o < m->outputs; ++o) out[o] = cut(rounded(out[o] * m->multiplier[o], m->shift), m->width);
#endif
}

static int8_t events[SG_MOST_INPUTS];

/* The token shift, the neurons and the matrix. */
static void shift_and_multiply(const sg_matrix *m, const sg_mixing *mixing, const int16_t *now, const int16_t *last, int32_t *out) {
  int32_t c;
  for (c = 0; c < SG_CHANNELS; ++c)
    events[c] = (int8_t)event_of(m, cut(last[c] + rounded((now[c] - last[c]) * mixing->multiplier[c], mixing->shift), SG_NORM_WIDTH));
  multiply(m, events, out);
}

static int32_t sigmoid(int32_t x) {
  int32_t at = x + ((int32_t)8 << SG_GATE_FRACTION);
  const int32_t last = ((int32_t)16 << SG_GATE_FRACTION) - 1;
  at = at < 0 ? 0 : at > last ? last : at;
  return sg_table_sigmoid[at >> SG_SIGMOID_SHIFT];
}

/* 2^-distance, times 2^SG_TABLE_BITS. */
static int32_t power(int32_t distance) {
  int32_t whole = distance >> SG_EXPONENT_FRACTION;
  if (whole > 16) whole = 16;
  return rounded(sg_table_exp[(distance & (((int32_t)1 << SG_EXPONENT_FRACTION) - 1)) >> SG_EXP_SHIFT], whole);
}

/* weight * value >> SG_TABLE_BITS, rounded; in two halves, for 41 bits do not fit. */
static int32_t fade(int32_t weight, int32_t value) {
  return (weight * (value >> 8) + ((weight * (value & 255) + half(SG_TABLE_BITS)) >> 8)) >> (SG_TABLE_BITS - 8);
}

/* The sum of two values, of which the one with the smaller exponent fades. */
static int32_t average(int32_t ahead, int32_t weight, int32_t past, int32_t now) {
  return ahead < 0 ? now + fade(weight, past) : past + fade(weight, now);
}

/* a / b; the reciprocal is a table's, better by one Newton step. */
static int32_t divide(int32_t a, int32_t b) {
  const int32_t bits = bit_length((uint32_t)b) - 1, by = 15 + bits - SG_OUTPUT_FRACTION;
  const uint32_t mantissa = bits > 15 ? (uint32_t)b >> (bits - 15) : (uint32_t)b << (15 - bits);
  const uint32_t guess = (uint32_t)sg_table_reciprocal[(mantissa - ((uint32_t)1 << 15)) >> SG_RECIPROCAL_SHIFT];
  const int32_t inverse = (int32_t)((guess * ((((uint32_t)1 << 31) - mantissa * guess) >> 15)) >> 15);
  return ((a >> 9) * inverse + (((a & 511) * inverse + half(by)) >> 9)) >> (by - 9);
}

static int32_t magnitude(int32_t x) { return x < 0 ? -x : x; }

static int32_t k[SG_MOST_INPUTS], v[SG_CHANNELS], r[SG_CHANNELS];

static void time_mix(const sg_mix *m, sg_block_state *s, const int16_t *h, int16_t *x) {
  const int32_t one = (int32_t)1 << SG_NUMERATOR_FRACTION;
  int32_t c;
  shift_and_multiply(&m->key, &m->mix_k, h, s->shift[0], k);
  shift_and_multiply(&m->value, &m->mix_v, h, s->shift[0], v);
  shift_and_multiply(&m->receptance, &m->mix_r, h, s->shift[0], r);
  for (c = 0; c < SG_CHANNELS; ++c) {
    const int32_t key = k[c] * ((int32_t)1 << SG_KEY_SHIFT), value = v[c] * ((int32_t)1 << SG_VALUE_SHIFT);
    int32_t ahead = s->exponent[c] - (key + m->first[c]), faded = s->exponent[c] + m->decay[c], weight, y, below;
    s->shift[0][c] = h[c];
    weight = power(magnitude(ahead));
    below = average(ahead, weight, s->denominator[c], one);
    below = below < one / 2 ? one / 2 : below > ((int32_t)1 << 24) - 1 ? ((int32_t)1 << 24) - 1 : below;
    y = cut(divide(average(ahead, weight, s->numerator[c], value), below), SG_OUTPUT_WIDTH);
    events[c] = (int8_t)event_of(&m->output, rounded(y * sigmoid(r[c]), SG_TABLE_BITS));
    if (faded < -SG_TOP(SG_EXPONENT_WIDTH)) faded = -SG_TOP(SG_EXPONENT_WIDTH);
    ahead = faded - key;
    weight = power(magnitude(ahead));
    s->numerator[c] = cut(average(ahead, weight, s->numerator[c], value), SG_NUMERATOR_WIDTH);
    s->denominator[c] = cut(average(ahead, weight, s->denominator[c], one), SG_NUMERATOR_WIDTH);
    s->exponent[c] = cut(ahead < 0 ? key : faded, SG_EXPONENT_WIDTH);
  }
  multiply(&m->output, events, v);
  for (c = 0; c < SG_CHANNELS; ++c) x[c] = (int16_t)cut(x[c] + v[c], SG_RESIDUAL_WIDTH);
}

static void channel_mix(const sg_mix *m, int16_t *last, const int16_t *h, int16_t *x) {
  int32_t c;
  shift_and_multiply(&m->receptance, &m->mix_r, h, last, r);
  shift_and_multiply(&m->key, &m->mix_k, h, last, k);
  for (c = 0; c < SG_CHANNELS; ++c) last[c] = h[c];
  for (c = 0; c < SG_HIDDEN; ++c) events[c] = (int8_t)event_of(&m->value, k[c]);
  multiply(&m->value, events, v);
  for (c = 0; c < SG_CHANNELS; ++c)
    x[c] = (int16_t)cut(x[c] + rounded(v[c] * sigmoid(r[c]), SG_TABLE_BITS), SG_RESIDUAL_WIDTH);
}

void sg_reset(sg_state *state) {
  int32_t layer, c;
  for (layer = 0; layer < SG_LAYERS; ++layer)
    for (c = 0; c < SG_CHANNELS; ++c) {
      sg_block_state *s = &state->block[layer];
      s->shift[0][c] = s->shift[1][c] = 0;
      s->numerator[c] = s->denominator[c] = 0;
      s->exponent[c] = -SG_TOP(SG_EXPONENT_WIDTH);
    }
}

void sg_step(sg_state *state, int32_t token, int16_t *logits) {
  static int16_t x[SG_CHANNELS], h[SG_CHANNELS];
  static int32_t sums[SG_OUTPUTS];
  int32_t c, layer;
  for (c = 0; c < SG_CHANNELS; ++c) {
    const int32_t stored = sg_embedding[token * SG_CHANNELS + c], value = SG_SPIKE_EMBEDDING ? stored >= 0 : stored;
    const int32_t distance = value * ((int32_t)1 << SG_EMBEDDING_FRACTION) - sg_embedding_mean[token];
    const int32_t y = gained(rounded(distance * sg_embedding_multiplier[token], SG_EMBEDDING_SHIFT), &sg_ln0, c);
    x[c] = (int16_t)cut(rounded(y, SG_NORM_FRACTION - SG_RESIDUAL_FRACTION), SG_RESIDUAL_WIDTH);
  }
  for (layer = 0; layer < SG_LAYERS; ++layer) {
    sg_block_state *s = &state->block[layer];
    const sg_mix *first = &sg_mixes[2 * layer], *second = &sg_mixes[2 * layer + 1];
    norm(x, &first->norm, h);
    if (first->decay)
      time_mix(first, s, h, x);
    else
      channel_mix(first, s->shift[0], h, x);
    norm(x, &second->norm, h);
    channel_mix(second, s->shift[1], h, x);
  }
  norm(x, &sg_ln_out, h);
  for (c = 0; c < SG_CHANNELS; ++c) events[c] = (int8_t)event_of(&sg_head, h[c]);
  multiply(&sg_head, events, sums);
  for (c = 0; c < SG_OUTPUTS; ++c) logits[c] = (int16_t)sums[c];
}

int32_t sg_argmax(const int16_t *logits) {
  int32_t best = 0, o;
  for (o = 1; o < SG_OUTPUTS; ++o)
    if (logits[o] > logits[best]) best = o;
  return best;
}

#if SG_LABELS

void sg_begin(sg_reading *text) {
  int32_t o;
  sg_reset(&text->state);
  for (o = 0; o < SG_OUTPUTS; ++o) text->sums[o] = 0;
  text->tokens = 0;
}

void sg_read(sg_reading *text, int32_t token) {
  static int16_t logits[SG_OUTPUTS];
  int32_t o;
  sg_step(&text->state, token, logits);
  for (o = 0; o < SG_OUTPUTS; ++o) text->sums[o] += logits[o];
  ++text->tokens;
}

void sg_answer(const sg_reading *text, int16_t *logits) {
  const int32_t part = text->tokens / 2;
  int32_t o;
  for (o = 0; o < SG_OUTPUTS; ++o)
    logits[o] = (int16_t)((text->sums[o] + (text->sums[o] < 0 ? -part : part)) / text->tokens);
}

#else

static uint32_t chance(const int16_t *logits, int32_t o, int32_t best, uint32_t sharpness, int floor) {
  const uint32_t below = (uint32_t)(best - logits[o]), most = ((uint32_t)floor << SG_SAMPLE_FRACTION) / sharpness;
  const uint32_t distance = below * sharpness;
  if (below > most) return 0;
  return (uint32_t)power((int32_t)(distance << (SG_EXPONENT_FRACTION - SG_SAMPLE_FRACTION)));
}

int32_t sg_sample(const int16_t *logits, uint32_t sharpness, int floor, uint32_t *random) {
  const int32_t best = sg_argmax(logits);
  uint32_t total = 0, chosen;
  int32_t o;
  if (sharpness == 0) sharpness = 1;
  floor = floor < 1 ? 1 : floor > 16 ? 16 : floor;
  for (o = 0; o < SG_VOCABULARY; ++o) total += chance(logits, o, logits[best], sharpness, floor);
  *random ^= *random << 13; /* xorshift32 */
  *random ^= *random >> 17;
  *random ^= *random << 5;
  chosen = (uint32_t)(((uint64_t)*random * total) >> 32);
  for (o = 0; o < SG_VOCABULARY; ++o) {
    const uint32_t part = chance(logits, o, logits[best], sharpness, floor);
    if (chosen < part) return o;
    chosen -= part;
  }
  return best;
}

const uint8_t *sg_bytes(int32_t token, int *length) {
  *length = (int)(sg_text_begin[token + 1] - sg_text_begin[token]);
  return sg_text + sg_text_begin[token];
}

#endif
