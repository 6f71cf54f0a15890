#include "plan.h"

#include <stdexcept>

namespace spikegpt::engine {
namespace {

void require(bool holds, const std::string &what) {
  if (!holds) throw std::invalid_argument(what);
}

void check_place(int64_t at, int64_t size, const Settings &settings, const std::string &name) {
  require(at >= 0 && size <= settings.state_size && at <= settings.state_size - size,
          "the state has no room for what " + name + " remembers");
}

void check_site(const SitePlan &site, const Settings &settings) {
  require(site.inputs > 0 && site.outputs > 0, "matrix " + site.matrix + " is empty");
  require(site.runs > 0 && site.outputs % site.runs == 0, "matrix " + site.matrix + " has no whole runs of outputs");
  if (site.membrane != -1) check_place(site.membrane, site.inputs, settings, site.neuron);
}

void check_size(const SitePlan &site, int inputs, int outputs) {
  require(site.inputs == inputs && site.outputs == outputs,
          "matrix " + site.matrix + " has another size than the mix that it is of");
}

}  // namespace

std::vector<int> MixPlan::matrices() const {
  if (is_shared()) return {input, output};
  if (is_time()) return {key, value, receptance, output};
  return {key, receptance, value};
}

void Plan::check(const Settings &settings) const {
  const int channels = settings.channels, count = static_cast<int>(sites.size());
  require(channels > 0 && settings.vocab > 0 && settings.threads > 0 && settings.state_size > 0,
          "channels, vocabulary, threads and the state must not be empty");
  require(
      settings.levels >= 1 && settings.levels <= 127 && settings.smallest >= 1 && settings.smallest <= settings.levels,
      "events must be 1 to at most 127");
  require(!sites.empty() && !mixes.empty() && mixes.size() % 2 == 0, "the model has no whole blocks");
  for (const SitePlan &site : sites) check_site(site, settings);
  check_size(sites.back(), channels, sites.back().outputs);
  for (const MixPlan &mix : mixes) {
    for (const int index : mix.matrices())
      require(index >= 0 && index < count - 1, "mix " + mix.name + " has a matrix that is not in the table");
    check_place(mix.shift, channels, settings, mix.name);
    if (mix.is_time()) {
      check_size(sites[static_cast<std::size_t>(mix.output)], channels, channels);
      check_place(mix.wkv, int64_t{3} * channels, settings, mix.name);
    }
    if (mix.is_shared()) {
      const SitePlan &input = sites[static_cast<std::size_t>(mix.input)];
      check_size(input, channels, 3 * channels);
      require(mix.is_time() && input.runs == 3, "matrix " + input.matrix + " is not of three runs in a time mix");
      continue;
    }
    const SitePlan &key = sites[static_cast<std::size_t>(mix.key)];
    check_size(key, channels, mix.is_time() ? channels : key.outputs);
    check_size(sites[static_cast<std::size_t>(mix.value)], mix.is_time() ? channels : key.outputs, channels);
    check_size(sites[static_cast<std::size_t>(mix.receptance)], channels, channels);
  }
}

}  // namespace spikegpt::engine
