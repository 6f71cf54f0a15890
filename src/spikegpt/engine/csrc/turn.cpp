#include "turn.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine.h"
#include "fixed/engine.h"

namespace spikegpt::engine {
namespace {

// Bit i of the result: whether byte i is not zero.
inline uint8_t nonzero_bytes(const int8_t *bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  const uint64_t low = 0x7f7f7f7f7f7f7f7fu,
                 high = ((word & low) + low) | word;  // the top bit of each byte that is not zero
  return static_cast<uint8_t>((high >> 7 & 0x0101010101010101u) * 0x0102040810204080u >> 56);
}

}  // namespace

template <class Engine>
Turns<Engine>::Turns(Engine &engine)
    : engine_(engine), loops_(loops_of(engine.isa())), scratch_(engine.outputs()) {}

template <class Engine>
std::vector<int64_t> Turns<Engine>::advance(const std::vector<Sequence *> &sequences, bool dense, bool together,
                                    Counts *counts) {
  std::vector<int64_t> chosen(sequences.size(), kNothing);
  std::vector<int> taken;  // tokens of each sequence that stands in the pass
  std::size_t first = 0;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const int count = std::min(sequences[i]->waiting(), kTokens);
    plan(*sequences[i]);
    taken.push_back(count);
    const int next = i + 1 < sequences.size() ? std::min(sequences[i + 1]->waiting(), kTokens) : kTokens;
    if (together && i + 1 < sequences.size() && tokens_ + next <= kTokens) continue;
    run(dense, counts);
    int at = 0;
    for (std::size_t n = 0; n < taken.size(); at += taken[n], ++n)
      chosen[first + n] = take(*sequences[first + n], at, taken[n]);
    first = i + 1;
    taken.clear();
  }
  return chosen;
}

// Puts what a sequence reads next into the pass; logits where somebody looks at them.
template <class Engine>
void Turns<Engine>::plan(Sequence &sequence) {
  const int count = std::min(sequence.waiting(), kTokens);
  for (int i = 0; i < count; ++i) {
    const std::size_t at = sequence.at + i;
    const bool last = at + 1 == sequence.unread.size();
    const bool wanted = last ? sequence.chooses : sequence.echo;
    rows_[tokens_] = {sequence.unread[at], sequence.state.template get<typename Engine::Value>(), wanted ? engine_.logits_row(tokens_) : nullptr};
    ++tokens_;
  }
}

template <class Engine>
void Turns<Engine>::run(bool dense, Counts *counts) {
  if (tokens_) engine_.pass(rows_, tokens_, dense, counts);
  tokens_ = 0;
}

template <class Engine>
int64_t Turns<Engine>::take(Sequence &sequence, int first, int count) {
  int64_t chosen = kNothing;
  for (int token = first; token < first + count; ++token) {
    if (sequence.spikes != Spikes::kNone) record_spikes(sequence, token);
    sequence.sampler->read(sequence.unread[sequence.at]);
    const bool last = ++sequence.at == sequence.unread.size();
    Score score;
    if (last && sequence.chooses) {
      chosen = sequence.sampler->choose(engine_.scores(token), scratch_, loops_, sequence.logprobs, &score);
    } else if (sequence.echo && !last) {
      const int64_t next = sequence.unread[sequence.at];
      if (!score_token(engine_.scores(token), engine_.outputs(), next, sequence.logprobs, scratch_, loops_, score))
        return Sampler::kNotFinite;
    } else {
      continue;
    }
    if (sequence.logprobs >= 0 && chosen != Sampler::kNotFinite) sequence.scores.push_back(std::move(score));
  }
  if (chosen >= 0) {
    sequence.unread.assign(1, chosen);
    sequence.at = 0;
  }
  return chosen;
}

template <class Engine>
void Turns<Engine>::record_spikes(Sequence &sequence, int token) const {
  std::vector<uint8_t> &to = sequence.fired;
  for (std::size_t i = 0; i < engine_.sites(); ++i) {
    const auto &site = engine_.site(i);
    const int8_t *events = site.events + static_cast<int64_t>(token) * site.stride;  // zeros up to the stride
    if (sequence.spikes == Spikes::kSizes)
      to.insert(to.end(), events, events + site.inputs);
    else
      for (int input = 0; input < site.inputs; input += 8) to.push_back(nonzero_bytes(events + input));
  }
}

template <class Engine>
int64_t Turns<Engine>::spike_bytes(Spikes spikes) const {
  int64_t bytes = 0;
  for (std::size_t i = 0; i < engine_.sites(); ++i)
    bytes += spikes == Spikes::kSizes ? engine_.site(i).inputs : (engine_.site(i).inputs + 7) / 8;
  return bytes;
}

template class Turns<Engine>;
template class Turns<fixed::Engine>;

}  // namespace spikegpt::engine
