#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>

#include "isa.h"

namespace spikegpt::engine {

#define SPIKEGPT_DECLARE(isa)             \
  namespace isa {                         \
  extern const SampleLoops sample_loops; \
  }
#define SPIKEGPT_ADDRESS(isa) &isa::sample_loops,

SPIKEGPT_EACH_ISA(SPIKEGPT_DECLARE)

const SampleLoops &loops_of(const char *isa) {
  static const SampleLoops *const loops[] = {SPIKEGPT_EACH_ISA(SPIKEGPT_ADDRESS)};
  return *best(loops, isa);
}

namespace {

inline int blocks_of(int vocab) { return (vocab + kBlock - 1) / kBlock; }

inline double sum_of(const std::vector<float> &sums) {
  double total = 0.0;
  for (float sum : sums) total += sum;
  return total;
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Calls work(index, value) for the values that are at least `least`; blocks whose largest is below it are not looked at.
template <class Work>
void each_above(const float *values, const float *largest, int count, float least, const Work &work) {
  for (int block = 0; block < blocks_of(count); ++block) {
    if (!(largest[block] >= least)) continue;
    const int end = std::min(count, (block + 1) * kBlock);
    for (int i = block * kBlock; i < end; ++i)
      if (values[i] >= least) work(i, values[i]);
  }
}

// A value that at least `k` values reach, from the largest of each block; the smallest float where there are fewer blocks.
float bound_of(const float *largest, int blocks, int k, std::vector<float> &edge, float none) {
  if (k > blocks) return none;
  edge.assign(largest, largest + blocks);
  std::nth_element(edge.begin(), edge.begin() + (k - 1), edge.end(), std::greater<float>());
  return edge[k - 1];
}

// The largest cutoff for which the weights that reach it measure at least `need`, as those that reach `least` do; `measure` is of
// one weight, `above` of all that reach a cutoff. Weights are positive, so that their bits are in their order: their range is
// halved, in loops that do not branch, until few weights are left to be sorted.
template <class Measure>
float cutoff_of(const float *weights, const float *peaks, int count, float least, double need, Scratch &scratch,
                const SampleLoops &loops, double (*above)(const float *, int, float), const Measure &measure) {
  float *candidates = scratch.candidates.data();
  int size = 0;
  for (int block = 0; block < blocks_of(count); ++block) {
    if (!(peaks[block] >= least)) continue;
    const int first = block * kBlock, width = std::min(kBlock, count - first);
    std::memcpy(candidates + size, weights + first, sizeof(float) * width);
    size += width;
  }
  uint32_t low = bits_of(least), high = bits_of(1.0f) + 1;
  double from_low = size, from_high = 0.0;  // what the weights from either end on measure, at most and exactly
  while (high - low > 1 && from_low - from_high > kBlock * measure(of_bits(low))) {
    const uint32_t middle = low + (high - low) / 2;
    const double total = above(candidates, size, of_bits(middle));
    (total >= need ? low : high) = middle;
    (total >= need ? from_low : from_high) = total;
  }
  float *end = candidates + loops.keep_between(candidates, size, of_bits(low), of_bits(high));
  std::sort(candidates, end, std::greater<float>());
  for (const float *w = candidates; w < end; ++w)
    if ((from_high += measure(*w)) >= need) return *w;
  return of_bits(low);
}

void likeliest(const float *logits, int vocab, int top, float base, Scratch &scratch, Score &score) {
  score.top.clear();
  if (top <= 0) return;
  top = std::min(top, vocab);
  const float least = bound_of(scratch.largest.data(), blocks_of(vocab), top, scratch.edge, -INFINITY);
  each_above(logits, scratch.largest.data(), vocab, least,
             [&](int token, float x) { score.top.emplace_back(token, x - base); });
  const auto better = [](const auto &a, const auto &b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  };
  std::partial_sort(score.top.begin(), score.top.begin() + top, score.top.end(), better);
  score.top.resize(top);
}

}  // namespace

Scratch::Scratch(int vocab)
    : logits(vocab),
      weights(vocab),
      largest(blocks_of(vocab)),
      peaks(blocks_of(vocab)),
      sums(blocks_of(vocab)),
      edge_sums(blocks_of(vocab)),
      candidates(vocab) {}

bool score_token(const float *logits, int vocab, int64_t token, int top, Scratch &scratch, const SampleLoops &loops,
                 Score &score) {
  if (loops.survey(logits, vocab, scratch.largest.data()) != 0.0f) return false;
  const float largest = *std::max_element(scratch.largest.begin(), scratch.largest.end());
  loops.weigh(logits, vocab, largest, 1.0f, scratch.weights.data(), scratch.sums.data());
  const float base = static_cast<float>(largest + std::log(sum_of(scratch.sums)));
  score.token = token;
  score.logprob = logits[token] - base;
  likeliest(logits, vocab, top, base, scratch, score);
  return true;
}

uint64_t Sampler::mix(uint64_t z) {  // SplitMix64: Steele, Lea and Flood, OOPSLA 2014
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

double Sampler::uniform() {
  random_ += 0x9e3779b97f4a7c15u;
  return static_cast<double>(mix(random_) >> 11) * 0x1.0p-53;
}

void Sampler::read(int64_t token) {
  if (remembers()) seen_.try_emplace(token, Seen{0});
}

const float *Sampler::adjust(const float *logits, Scratch &scratch) const {
  if (seen_.empty() && settings_.bias.empty()) return logits;
  float *to = scratch.logits.data();
  std::memcpy(to, logits, sizeof(float) * vocab_);
  for (const auto &[token, seen] : seen_) {
    float &x = to[token];
    x = x > 0.0f ? x / settings_.repetition : x * settings_.repetition;
    if (seen.written) x = x - settings_.frequency * static_cast<float>(seen.written) - settings_.presence;
  }
  for (const auto &[token, bias] : settings_.bias) to[token] += bias;
  return to;
}

// The smallest weight that passes top-k, top-p among what passed, and min-p. The likeliest token, of weight 1, always does.
float Sampler::cutoff(Scratch &scratch, const SampleLoops &loops) const {
  const float *peaks = scratch.peaks.data(), *weights = scratch.weights.data();
  const int blocks = blocks_of(vocab_);
  float least = 0.0f;
  if (settings_.top_k > 0 && settings_.top_k < vocab_) {
    const float bound = bound_of(peaks, blocks, settings_.top_k, scratch.edge, 0.0f);
    least = cutoff_of(weights, peaks, vocab_, bound, settings_.top_k, scratch, loops, loops.count_above,
                      [](float) { return 1.0; });
  }
  if (settings_.top_p < 1.0f) {
    if (least > 0.0f) loops.sum_above(weights, vocab_, least, scratch.sums.data());
    const double total = sum_of(scratch.sums), kept = least > 0.0f ? std::min<double>(vocab_, total / least) : vocab_;
    // All the tokens below this bound together have less than 1 - p.
    const float bound = std::min(1.0f, static_cast<float>((1.0 - settings_.top_p) * total / (kept + 1.0)));
    least = cutoff_of(weights, peaks, vocab_, std::max(least, bound), settings_.top_p * total, scratch, loops,
                      loops.total_above, [](float w) { return static_cast<double>(w); });
  }
  return std::max(least, settings_.min_p);
}

// A token of at least weight `least`, each with a probability in the proportion of its weight; scratch.sums are of those.
int64_t Sampler::draw(Scratch &scratch, float least) {
  double left = uniform() * sum_of(scratch.sums);
  int block = 0, last = blocks_of(vocab_) - 1;
  while (scratch.sums[last] == 0.0f) --last;
  for (; block < last && left >= scratch.sums[block]; ++block) left -= scratch.sums[block];
  const float *weights = scratch.weights.data();
  int64_t token = -1;
  for (int i = block * kBlock, end = std::min(vocab_, i + kBlock); i < end; ++i) {
    if (weights[i] < least || weights[i] == 0.0f) continue;
    token = i;  // the last of them, should rounding leave something over
    if (left < weights[i]) break;
    left -= weights[i];
  }
  return token;
}

int64_t Sampler::choose(const float *logits, Scratch &scratch, const SampleLoops &loops, int logprobs, Score *score) {
  const float *given = logits;
  logits = adjust(logits, scratch);
  float *largest = scratch.largest.data(), *weights = scratch.weights.data();
  if (loops.survey(logits, vocab_, largest) != 0.0f) return kNotFinite;
  const auto best_block = std::max_element(scratch.largest.begin(), scratch.largest.end());
  const float best = *best_block;
  int64_t token;
  if (settings_.temperature < 1e-6f) {
    token = (best_block - scratch.largest.begin()) * kBlock;
    while (logits[token] != best) ++token;
  } else {
    const float sharpness = 1.0f / settings_.temperature;
    loops.weigh(logits, vocab_, best, sharpness, weights, scratch.sums.data());
    float least = 0.0f;
    if (settings_.top_k > 0 || settings_.top_p < 1.0f || settings_.min_p > 0.0f) {
      loops.weigh(largest, blocks_of(vocab_), best, sharpness, scratch.peaks.data(), scratch.edge_sums.data());
      least = cutoff(scratch, loops);
      loops.sum_above(weights, vocab_, least, scratch.sums.data());
    }
    token = draw(scratch, least);
  }
  if (logprobs >= 0 && !score_token(given, vocab_, token, logprobs, scratch, loops, *score)) return kNotFinite;
  if (remembers()) ++seen_.try_emplace(token, Seen{0}).first->second.written;
  return token;
}

}  // namespace spikegpt::engine
