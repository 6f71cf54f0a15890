// Choosing the next token from logits: penalties, bias, temperature, top-k, top-p, min-p, and log-probabilities.
// `generation/sampling.py` is the specification. V vocabulary. A weight is exp((logit - largest) / temperature): every filter
// is a smallest weight, so that nothing is sorted but the few tokens at a filter's edge.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

namespace spikegpt::engine {

constexpr int kBlock = 32;  // tokens whose largest and whose sum are kept

// One instruction set's loops over the vocabulary; the same bits on each.
struct SampleLoops {
  const char *name;
  // The largest of each block; returns 0, or NaN where a logit is not finite.
  float (*survey)(const float *logits, int count, float *largest);
  // Weights of the logits and their sum in each block.
  void (*weigh)(const float *logits, int count, float largest, float sharpness, float *weights, float *sums);
  // The sum in each block of the weights that are at least `cutoff`.
  void (*sum_above)(const float *weights, int count, float cutoff, float *sums);
  // The same in all, and how many they are.
  double (*total_above)(const float *weights, int count, float cutoff);
  double (*count_above)(const float *weights, int count, float cutoff);
  // Moves the weights of at least `low` and below `high` to the front; how many they are.
  int (*keep_between)(float *weights, int count, float low, float high);
  // Logits of integers in this unit as floats.
  void (*scale)(const int32_t *integers, int64_t count, float unit, float *logits);
};

const SampleLoops &loops_of(const char *isa);  // one that this machine runs; "" for the best

struct Sampling {
  float temperature = 1.0f;
  int top_k = 0;
  float top_p = 1.0f, min_p = 0.0f;
  float repetition = 1.0f, presence = 0.0f, frequency = 0.0f;
  std::vector<std::pair<int, float>> bias;
  uint64_t seed = 0;
};

// A token and how likely it was under the model itself, before any of the settings; the likeliest beside it, best first.
struct Score {
  int64_t token;
  float logprob;
  std::vector<std::pair<int, float>> top;
};

// Buffers that samplers of one thread share.
struct Scratch {
  explicit Scratch(int vocab);

  std::vector<float> logits, weights, largest, peaks, sums, edge_sums, edge, candidates;
};

class Sampler {
 public:
  static constexpr int64_t kNotFinite = -2;

  Sampler(const Sampling &settings, int vocab) : settings_(settings), vocab_(vocab), random_(mix(settings.seed)) {}

  // Says that the text has this token, which was read rather than chosen.
  void read(int64_t token);

  // Says that the text chose it that many times before.
  void restore(int64_t token, int64_t times) {
    if (remembers()) seen_[token] = Seen{static_cast<int>(times)};
  }

  // The next token of the text, or kNotFinite. With logprobs >= 0 its score and that many of the likeliest go to `score`.
  int64_t choose(const float *logits, Scratch &scratch, const SampleLoops &loops, int logprobs, Score *score);

  int vocab() const { return vocab_; }

 private:
  struct Seen {
    int written;  // times it was chosen; 0 where it was only read
  };

  static uint64_t mix(uint64_t z);
  double uniform();
  bool remembers() const {
    return settings_.repetition != 1.0f || settings_.presence != 0.0f || settings_.frequency != 0.0f;
  }
  const float *adjust(const float *logits, Scratch &scratch) const;
  float cutoff(Scratch &scratch, const SampleLoops &loops) const;
  int64_t draw(Scratch &scratch, float least);

  Sampling settings_;
  int vocab_;
  uint64_t random_;
  std::unordered_map<int64_t, Seen> seen_;
};

// The score of a token under logits [V]; false where they are not finite. Overwrites the scratch.
bool score_token(const float *logits, int vocab, int64_t token, int top, Scratch &scratch, const SampleLoops &loops,
                 Score &score);

}  // namespace spikegpt::engine
