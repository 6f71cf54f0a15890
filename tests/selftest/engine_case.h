// What an engine is built from, as vectors.py wrote it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "../../src/spikegpt/engine/csrc/plan.h"
#include "../../src/spikegpt/engine/csrc/tensor.h"
#include "vectors.h"

// Words of one line of a text that vectors.py wrote.
template <class Read>
void each_line(const Case &given, const char *name, const Read &read) {
  const Array &text = given.at(name);
  std::istringstream lines(std::string(text.bytes.begin(), text.bytes.end()));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    read(words);
    if (!words) throw std::runtime_error(std::string("a line of ") + name + " cannot be read: " + line);
  }
}

inline spikegpt::engine::Plan plan_of(const Case &given) {
  spikegpt::engine::Plan plan;
  each_line(given, "sites", [&](std::istream &words) {
    spikegpt::engine::SitePlan site{};
    words >> site.matrix >> site.neuron >> site.inputs >> site.outputs >> site.is_signed >> site.membrane >>
        site.runs;
    plan.sites.push_back(site);
  });
  each_line(given, "mixes", [&](std::istream &words) {
    spikegpt::engine::MixPlan mix{};
    words >> mix.name >> mix.norm >> mix.key >> mix.value >> mix.receptance >> mix.output >>
        mix.input >> mix.shift >> mix.wkv;
    plan.mixes.push_back(mix);
  });
  return plan;
}

inline spikegpt::engine::Tensors tensors_of(const Case &given) {
  using spikegpt::engine::Tensor;
  spikegpt::engine::Tensors tensors;
  each_line(given, "tensors", [&](std::istream &words) {
    std::string name;
    words >> name;
    const Array &array = given.at("tensor/" + name);
    const auto type = array.type == 'f'   ? Tensor::kFloat
                      : array.type == 'w' ? Tensor::kInt32
                      : array.type == 'b' ? Tensor::kInt8
                                          : Tensor::kUint8;
    tensors.emplace(name, Tensor{type, array.shape, array.bytes.data()});
  });
  return tensors;
}

inline spikegpt::engine::Settings settings_of(const Case &given, int threads) {
  spikegpt::engine::Settings settings{};
  settings.channels = static_cast<int>(given.integer("channels"));
  settings.vocab = static_cast<int>(given.integer("vocab"));
  settings.levels = static_cast<int>(given.number("levels"));
  settings.smallest = static_cast<int>(given.number("smallest"));
  settings.hard = given.has("hard") && given.number("hard") != 0.0f;
  settings.spike_embedding = given.number("spike_embedding") != 0.0f;
  settings.state_size = given.integer("state_size");
  settings.threads = threads;
  return settings;
}
