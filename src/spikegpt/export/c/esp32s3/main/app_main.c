/* Writes text for ever, on the console; of a classifier, labels texts of tokens that come from there, one a line, 0 at the end. */
#include <stdio.h>

#include "spikegpt.h"

static int16_t logits[SG_OUTPUTS];

#if SG_LABELS

static sg_reading text;

void app_main(void) {
  for (;;) {
    int token;
    sg_begin(&text);
    while (text.tokens < SG_MOST_TOKENS && scanf("%d", &token) == 1 && token > 0 && token < SG_VOCABULARY)
      sg_read(&text, token);
    if (!text.tokens) continue;
    sg_answer(&text, logits);
    printf("%s\n", sg_label_names[sg_argmax(logits)]);
  }
}

#else

static sg_state state;

void app_main(void) {
  uint32_t random = 1;
  int32_t token = 0;
  sg_reset(&state);
  for (;;) {
    int length;
    const uint8_t *bytes;
    sg_step(&state, token, logits);
    token = sg_sample(logits, SG_SHARPNESS(80), 8, &random);
    bytes = sg_bytes(token, &length);
    fwrite(bytes, 1, (size_t)length, stdout);
    fflush(stdout);
  }
}

#endif
