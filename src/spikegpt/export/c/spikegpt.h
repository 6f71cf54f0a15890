/* An event-driven SpikeGPT in integers only: no float, no allocation, no library.
 *
 * sg_step reads one token and says how likely each next one is, or of a classifier (SG_LABELS is not 0) each label, in units of
 * 2^-SG_LOGIT_FRACTION. Everything that depends on the text is in sg_state; several texts may take turns, but not at the same
 * time: the work space is static.
 * int is at least 32 bits, and >> of a negative number is arithmetic, as in every compiler for the machines meant. */
#ifndef SPIKEGPT_H
#define SPIKEGPT_H

#include <stdint.h>

#include "model_size.h"

typedef struct {
  int16_t shift[2][SG_CHANNELS]; /* token shift of both halves of the block */
  int32_t numerator[SG_CHANNELS], denominator[SG_CHANNELS], exponent[SG_CHANNELS];
} sg_block_state;

typedef struct {
  sg_block_state block[SG_LAYERS];
} sg_state;

/* The state before any token. */
void sg_reset(sg_state *state);

/* One token, below SG_VOCABULARY; logits[SG_OUTPUTS]. */
void sg_step(sg_state *state, int32_t token, int16_t *logits);

/* Rows of weights read since the program began: an event reads one. */
extern uint32_t sg_events;

/* Values cut off at the width of their format; counted only if compiled with SG_COUNT_SATURATIONS. */
extern uint32_t sg_saturations;

/* The likeliest token or label; of equals the first. */
int32_t sg_argmax(const int16_t *logits);

#if SG_LABELS
/* A text that is classified: its answer is the mean of what its tokens said. All zeros, but for the state, before any token. */
typedef struct {
  sg_state state;
  int32_t sums[SG_OUTPUTS], tokens;
} sg_reading;

void sg_begin(sg_reading *text);

/* One token, below SG_VOCABULARY, of at most SG_MOST_TOKENS. */
#define SG_MOST_TOKENS 65535
void sg_read(sg_reading *text, int32_t token);

/* The mean logits[SG_OUTPUTS] of at least one token, rounded to nearest; sg_argmax is the label of a task that gives one. */
void sg_answer(const sg_reading *text, int16_t *logits);

/* UTF-8. */
extern const char *const sg_label_names[SG_LABELS];
#else
/* A token drawn with probabilities proportional to 2^(logit x sharpness); SG_SHARPNESS(100) is temperature 1. `random` is a
 * seed other than 0, changed with every call. Tokens less likely than 2^-`floor` times the likeliest are left out. */
#define SG_SHARPNESS(temperature_percent) (36933u / (temperature_percent))
int32_t sg_sample(const int16_t *logits, uint32_t sharpness, int floor, uint32_t *random);

/* The bytes that a token stands for; tokens may end in the middle of a UTF-8 character. */
const uint8_t *sg_bytes(int32_t token, int *length);
#endif

#endif
