#include "panels.h"

#include <algorithm>
#include <vector>

namespace spikegpt::engine {
namespace {

// From [input][output] to [input][stride], in the site's order of outputs and the instruction set's within a block; padding
// is the offset, a zero.
void fill(const Site &site, const Tensor &weights, Place place, Arena &arena, Panel &panel) {
  const int width = outputs_per_block(site.bits);
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
    for (int within = 0; within < panel.blocks * width; ++within) {
      const int o = site.order[panel.begin + within], at = places[within % width];
      if (o < 0) continue;
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

// The first block of a part, of one run: parts differ by a block at most.
int first_block(int run_blocks, int part, int parts) { return run_blocks * part / parts; }

const int *order_of(const Site &site, int run_blocks, int parts, Arena &arena) {
  const int width = outputs_per_block(site.bits), run = site.outputs / site.runs;
  int *order = arena.take<int>(site.padded), *to = order;
  for (int part = 0; part < parts; ++part)
    for (int which = 0; which < site.runs; ++which)
      for (int o = first_block(run_blocks, part, parts) * width; o < first_block(run_blocks, part + 1, parts) * width; ++o)
        *to++ = o < run ? which * run + o : -1;
  return order;
}

}  // namespace

// Gives each part its blocks of outputs, in panels of nearly equal width.
void lay_out(Site &site, const Tensor &weights, Place place, int parts, Arena &arena) {
  const int width = outputs_per_block(site.bits), run_blocks = divide_up(site.outputs / site.runs, width);
  site.padded = site.runs * run_blocks * width;
  site.order = order_of(site, run_blocks, parts, arena);
  std::vector<Panel> panels;
  int *panels_of = arena.take<int>(parts + 1);
  for (int part = 0; part < parts; ++part) {
    const int begin = site.runs * first_block(run_blocks, part, parts);
    const int count = site.runs * first_block(run_blocks, part + 1, parts) - begin;
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
