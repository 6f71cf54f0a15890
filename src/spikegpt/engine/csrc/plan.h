// What an engine is built for, as Python describes it: the table of matrices (model/sites.py) and the mixes that use them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace spikegpt::engine {

// A matrix and the neuron in front of it, by the names of their tensors.
struct SitePlan {
  std::string matrix, neuron;
  int inputs, outputs;
  bool is_signed;
  int64_t membrane;  // where the state keeps it, in floats; -1: no memory
  int runs;          // of its outputs: 3 of a time mix's input (key, value, receptance), 1 of all others
};

// A time mix, or a channel mix: its matrices as indices into the table, and where the state keeps the rest.
struct MixPlan {
  std::string name, norm;
  int key, value, receptance, output, input;  // output: -1 in a channel mix; input: -1 unless it stands for the first three
  int64_t shift, wkv;                         // wkv: -1 in a channel mix

  bool is_time() const { return output >= 0; }
  bool is_shared() const { return input >= 0; }
  std::vector<int> matrices() const;
};

struct Settings {
  int channels, vocab;
  int levels, smallest;
  bool hard, spike_embedding;
  int64_t state_size;  // floats of one text's state
  int threads;
  std::string isa;  // "" for the best
};

struct Plan {
  std::vector<SitePlan> sites;  // in the order they run; the last is the head
  std::vector<MixPlan> mixes;   // two a block

  // Throws std::invalid_argument where the sizes do not fit each other, or a part of the state lies outside of it.
  void check(const Settings &settings) const;
};

}  // namespace spikegpt::engine
