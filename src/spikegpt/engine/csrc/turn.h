// A turn: every sequence of a group reads what it has not read, at most kTokens tokens, and chooses its next token.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "model.h"
#include "sample.h"

namespace spikegpt::engine {

enum class Spikes { kNone, kMask, kSizes };

// The state of a text on one of the engines.
class StateRow {
 public:
  StateRow() = default;
  StateRow(float *values) : floats_(values) {}
  StateRow(int32_t *values) : integers_(values) {}

  template <class Value>
  bool is() const {
    return get<Value>() != nullptr;
  }

  // Null where the state is of the other type.
  template <class Value>
  Value *get() const {
    if constexpr (std::is_same_v<Value, float>)
      return floats_;
    else
      return integers_;
  }

 private:
  float *floats_ = nullptr;
  int32_t *integers_ = nullptr;
};

// One text in the making.
struct Sequence {
  StateRow state;
  std::shared_ptr<void> owner;  // keeps the state
  int64_t state_size = 0;
  std::vector<int64_t> unread;  // from `at` on; the logits after the last choose the next token, which is appended
  std::size_t at = 0;
  std::shared_ptr<Sampler> sampler;
  int logprobs = -1;    // how many of the likeliest tokens go with each score; -1: no scores
  bool echo = false;    // tokens that are read are scored too, from the second on
  bool chooses = true;  // false: only reads
  bool reads_last = true;  // false: the last token is only scored, by `echo`; not where it chooses
  Spikes spikes = Spikes::kNone;
  std::vector<Score> scores;
  std::vector<uint8_t> fired;  // of every token read: bit masks or sizes, site after site
  std::atomic<bool> busy{false};

  int waiting() const { return static_cast<int>(unread.size() - at) - !reads_last; }
};

constexpr int64_t kNothing = -1;

// For Engine and fixed::Engine, which score a token as float32.
template <class Engine>
class Turns {
 public:
  explicit Turns(Engine &engine);

  // What each sequence, of states of this engine, chose: a token, kNothing (it has more to read, or only reads), or Sampler::kNotFinite. `together`:
  // as many in one pass as fit, which share each weight while it is in the cache.
  std::vector<int64_t> advance(const std::vector<Sequence *> &sequences, bool dense, bool together, Counts *counts);

  // Bytes of `fired` for each token.
  int64_t spike_bytes(Spikes spikes) const;

 private:
  void plan(Sequence &sequence);
  void run(bool dense, Counts *counts);
  int64_t take(Sequence &sequence, int first, int count);
  void record_spikes(Sequence &sequence, int token) const;

  Engine &engine_;
  const SampleLoops &loops_;
  Scratch scratch_;
  typename Engine::Row rows_[kTokens];
  int tokens_ = 0;
};

}  // namespace spikegpt::engine
