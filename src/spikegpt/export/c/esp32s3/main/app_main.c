/* Writes text for ever, on the console. */
#include <stdio.h>

#include "spikegpt.h"

static sg_state state;
static int16_t logits[SG_VOCABULARY];

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
