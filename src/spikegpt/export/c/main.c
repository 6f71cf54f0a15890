/* For a machine with a C library:
 *   demo                    compares with the vectors that came along; 0 if every step is equal bit for bit
 *   demo -w COUNT SEED ID.. reads tokens, writes COUNT more, at temperature 0.8
 *   demo -c < IDS           classifies a text of these tokens: its label, and the mean logit of every label
 *   demo -l < IDS > LOGITS  reads tokens as numbers, writes logits as little-endian 16-bit integers */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "spikegpt.h"
#include "vectors.h"

static sg_state state;
static int16_t logits[SG_OUTPUTS];

static uint32_t checksum(void) { /* FNV-1a over 16-bit values */
  uint32_t sum = 2166136261u;
  int32_t o;
  for (o = 0; o < SG_OUTPUTS; ++o) sum = (sum ^ (uint16_t)logits[o]) * 16777619u;
  return sum;
}

static int check(void) {
  int step, same = 0;
  for (step = 0; step < SG_VECTORS; ++step) {
    sg_step(&state, sg_vector_tokens[step], logits);
    same += checksum() == sg_vector_sums[step];
  }
  printf("%d of %d steps equal bit for bit\n", same, SG_VECTORS);
  return same != SG_VECTORS;
}

static int32_t token_of(const char *text) {
  const long id = atol(text);
  if (id >= 0 && id < SG_VOCABULARY) return (int32_t)id;
  fprintf(stderr, "token %ld is not in the vocabulary\n", id);
  exit(2);
}

#if SG_LABELS
static int classify(void) {
  static sg_reading text;
  char word[16];
  int32_t o;
  sg_begin(&text);
  while (text.tokens < SG_MOST_TOKENS && scanf("%15s", word) == 1) sg_read(&text, token_of(word));
  if (!text.tokens) return 1;
  sg_answer(&text, logits);
  printf("%s\n", sg_label_names[sg_argmax(logits)]);
  for (o = 0; o < SG_LABELS; ++o) printf("%d %s\n", logits[o], sg_label_names[o]);
  return 0;
}
#else
static void write_token(int32_t token) {
  int length;
  const uint8_t *bytes = sg_bytes(token, &length);
  fwrite(bytes, 1, (size_t)length, stdout);
}

static void write_text(int count, uint32_t random, char **ids) {
  for (; *ids; ++ids) {
    const int32_t token = token_of(*ids);
    write_token(token);
    sg_step(&state, token, logits);
  }
  for (; count > 0; --count) {
    const int32_t token = sg_sample(logits, SG_SHARPNESS(80), 8, &random);
    write_token(token);
    sg_step(&state, token, logits);
  }
  putchar('\n');
}
#endif

int main(int argc, char **argv) {
  sg_reset(&state);
#if SG_LABELS
  if (argc == 2 && !strcmp(argv[1], "-c")) return classify();
#else
  if (argc > 4 && !strcmp(argv[1], "-w")) {
    write_text(atoi(argv[2]), (uint32_t)strtoul(argv[3], 0, 10) | 1, argv + 4);
    return 0;
  }
#endif
  if (argc == 2 && !strcmp(argv[1], "-l")) {
    char word[16];
    while (scanf("%15s", word) == 1) {
      int32_t o;
      sg_step(&state, token_of(word), logits);
      for (o = 0; o < SG_OUTPUTS; ++o) {
        putchar(logits[o] & 255);
        putchar((uint16_t)logits[o] >> 8);
      }
    }
    fprintf(stderr, "%lu rows of weights read, %lu values cut off\n", (unsigned long)sg_events, (unsigned long)sg_saturations);
    return 0;
  }
  return check();
}
