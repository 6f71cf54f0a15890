#include "panels.h"

#include <algorithm>
#include <vector>

namespace spikegpt::engine {
namespace {

// From [input][output] to [input][stride], in the instruction set's order of outputs; padding is the offset, a zero.
void fill(const Site &site, const Tensor &weights, Place place, Arena &arena, Panel &panel) {
  const int width = outputs_per_block(site.bits), last = std::min(panel.begin + panel.blocks * width, site.outputs);
  int places[128];
  for (int o = 0; o < width; ++o) places[o] = place(o);
  panel.stride = 64 * (panel.blocks + (panel.blocks % 16 == 0));
  const std::size_t size = static_cast<std::size_t>(site.inputs) * panel.stride;
  uint8_t *rows = arena.take<uint8_t>(size);
  std::memset(rows, site.bits == 4 ? 0x88 : 0x80, size);
  const int64_t columns = weights.shape[1];
  for (int input = 0; input < site.inputs; ++input) {
    uint8_t *row = rows + static_cast<std::size_t>(input) * panel.stride;
    const uint8_t *source = static_cast<const uint8_t *>(weights.data) + input * columns;
    for (int o = panel.begin; o < last; ++o) {
      const int within = o - panel.begin, at = places[within % width];
      uint8_t *to = row + within / width * 64 + at % 64;
      if (site.bits == 8) {
        *to = source[o] ^ 0x80;
      } else {
        const uint8_t value = source[o / 2] >> (o % 2 * 4) & 15;
        *to = at < 64 ? (*to & 0xf0) | value : (*to & 0x0f) | value << 4;
      }
    }
  }
  panel.weights = rows;
}

}  // namespace

// Gives each part its blocks of outputs, in panels of nearly equal width.
void lay_out(Site &site, const Tensor &weights, Place place, int parts, Arena &arena) {
  const int width = outputs_per_block(site.bits), blocks = divide_up(site.outputs, width);
  site.padded = blocks * width;
  std::vector<Panel> panels;
  int *panels_of = arena.take<int>(parts + 1);
  for (int part = 0; part < parts; ++part) {
    const int begin = blocks * part / parts, count = blocks * (part + 1) / parts - begin;
    const int pieces = divide_up(count, kPanelOutputs / width);
    for (int piece = 0; piece < pieces; ++piece) {
      const int first = begin + count * piece / pieces, last = begin + count * (piece + 1) / pieces;
      panels.push_back({first * width, last - first, 0, nullptr});
      fill(site, weights, place, arena, panels.back());
    }
    panels_of[part + 1] = static_cast<int>(panels.size());
  }
  Panel *kept = arena.take<Panel>(panels.size());
  std::copy(panels.begin(), panels.end(), kept);
  site.panels = kept;
  site.panels_of = panels_of;
}

}  // namespace spikegpt::engine
