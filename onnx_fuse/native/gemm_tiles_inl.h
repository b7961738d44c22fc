// Products by matrix tiles of bfloat16, as AMX has them: C (16 x 16) += A (16 x 32) * B (32 x 16).
//
// The tile unit is a template parameter: `AmxUnit`, or `ScalarUnit`, which does the same with loops
// and stands in for it in tests on machines without AMX, and in the check of AMX before its first
// use.
#pragma once

#include "tile_parts_inl.h"

namespace onnx_fuse {
namespace {

/// Registers: C takes 0 to 3, two tiles of W 4 and 5, two of A 6 and 7.
constexpr int kAccumulators = 4, kWeightTile = 4, kRowsTile = 6;

/// What AMX does, in loops.
struct ScalarUnit {
  float c[kAccumulators][kTileRows * kPanel];
  const uint16_t* operand[8];
  ptrdiff_t stride[8];  // elements from one row of an operand to the next

  void begin() {}
  void end() {}
  template <int kTile>
  void clear() {
    memset(c[kTile], 0, sizeof c[kTile]);
  }
  template <int kTile>
  void load(const uint16_t* tile, ptrdiff_t row_bytes = kTileDepth * 2) {
    operand[kTile] = tile;
    stride[kTile] = row_bytes / 2;
  }
  /// Even and odd elements of the depth have sums of their own, which meet C at the end (Intel's
  /// manual, TDPBF16PS).
  template <int kC, int kA, int kB>
  void multiply() {
    for (ptrdiff_t row = 0; row < kTileRows; ++row) {
      float even[kPanel] = {}, odd[kPanel] = {};
      for (ptrdiff_t k = 0; k < kTileDepth; k += 2) {
        const float a = widen(operand[kA][row * stride[kA] + k]);
        const float b = widen(operand[kA][row * stride[kA] + k + 1]);
        const uint16_t* w = operand[kB] + k / 2 * stride[kB];
        for (ptrdiff_t column = 0; column < kPanel; ++column) {
          even[column] += a * widen(w[2 * column]);
          odd[column] += b * widen(w[2 * column + 1]);
        }
      }
      for (ptrdiff_t column = 0; column < kPanel; ++column) {
        c[kC][row * kPanel + column] += even[column] + odd[column];
      }
    }
  }
  template <int kTile>
  void store(float* out) {
    memcpy(out, c[kTile], sizeof c[kTile]);
  }
  static float widen(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
  }
};

/// Steps of depth whose A (64 rows, all parts) takes at most 32 KiB: it stays in L1 while a block
/// of the depth is multiplied with one panel after the other. Their products are also summed by
/// themselves, for the same reason as in kPiece.
constexpr ptrdiff_t steps_of_block(int parts) { return parts == 1 ? 8 : parts == 2 ? 4 : 2; }

/// Panels that share a block of A, one bit each.
constexpr ptrdiff_t kPanelsAtOnce = 64;

/// Bytes of weights that are prefetched to L1 before they become tiles: latency times bandwidth of
/// a core's way to L3 or memory, about 100 ns times 30 bytes a ns.
constexpr int kPrefetchedAhead = 4096;

/// What the tiles read and write between registers: weights of three steps, sums of one.
template <int kParts, int kPanels>
struct TileMemory {
  static constexpr int kBuffers = 3;
  alignas(64) Bfloat16Tile weights[kBuffers][kPanels][kParts];
  alignas(64) float sums[kAccumulators][kTileRows * kPanel];
};

/// Up to 64 packed rows times up to kPanelsAtOnce panels.
///
/// kRowTiles tiles of rows meet kPanels panels at once. Their four products are accumulated in
/// turn: one after the other on the same tile of C takes the unit 52 cycles, on different ones 16.
/// A tile load takes 8 from L1.
///
/// Work goes by steps: one of depth, for a group of panels. Tile loads must find in L1 what they
/// read: stores reach it in order, after all that stands before them, and are not forwarded. So the
/// weights become tiles two steps ahead of their products, a few rows of them after each product,
/// and sums are added to C in the same way, while the products of the next step are under way.
template <class Unit, int kParts, int kRowTiles, int kPanels>
struct TileProduct {
  static_assert(kRowTiles * kPanels == kAccumulators, "one for each");

  Unit& unit;
  TileMemory<kParts, kPanels>& memory;
  const Gemm& g;
  const uint16_t* a;    // packed, of these rows
  ptrdiff_t step_of_a;  // elements from one step of depth to the next
  ptrdiff_t row, rows, panel, panels;
  uint64_t not_finite = 0;  // panels with such weights, by bits

  /// Of the depth a block, of the panels a group, of the block a step.
  struct Place {
    ptrdiff_t block, group, step;
    ptrdiff_t depth() const { return (block + step) * kTileDepth; }
  };
  bool exists(Place p) const { return p.block < depth_tiles(g.depth); }
  bool ends_block(Place p) const {
    return p.step + 1 == steps_of_block(kParts) || p.block + p.step + 1 == depth_tiles(g.depth);
  }
  void advance(Place* p) const {
    const bool block_ends = ends_block(*p);
    ++p->step;
    if (!block_ends) return;
    p->step = 0;
    p->group += kPanels;
    if (p->group < panels) return;
    p->group = 0;
    p->block += steps_of_block(kParts);
  }

  // What is done between products: a share of it after each one.

  static constexpr int kRowsOfWord = kParts == 1 ? 2 : 1;
  static constexpr int kTileLines = kTileDepth / kRowsOfWord;  // a line is 16 words
  static constexpr int kTilePairs = kTileDepth / 2;
  static constexpr int kStepsAhead =
      kPrefetchedAhead / (kTileLines * kPanel * kWordBytes * kPanels);

  /// For each panel of a group; null where there is nothing to do.
  struct Meanwhile {
    const float* prefetched[kPanels];
    const float* coming[kPanels];
    ptrdiff_t left;              // rows of `coming`
    Bfloat16Tile (*to)[kParts];  // what becomes of them
    __m512 rests[kPanels];
    float* c[kPanels];  // what the sums are added to
    bool starts;        // there is nothing in C yet
    __m512 start[kPanels];
    __mmask16 columns[kPanels];
  };
  const float* weights_of(Place p, int next) const {
    if (!exists(p) || p.group + next >= panels) return nullptr;
    return g.w + (panel + p.group + next) * g.w_panel + p.depth() / kRowsOfWord * kPanel;
  }
  void begin_preparing(Place prefetched, Place coming, Bfloat16Tile (*to)[kParts],
                       Meanwhile* m) const {
    m->left = g.depth - coming.depth();
    m->to = to;
    for (int next = 0; next < kPanels; ++next) {
      m->prefetched[next] = weights_of(prefetched, next);
      m->coming[next] = weights_of(coming, next);
      m->rests[next] = _mm512_setzero_ps();
    }
  }
  void end_preparing(Place coming, const Meanwhile& m) {
    for (int next = 0; kParts > 1 && next < kPanels; ++next) {
      if (!is_finite(m.rests[next])) not_finite |= uint64_t{1} << (coming.group + next);
    }
  }
  void begin_adding(Place finished, Meanwhile* m) const {
    m->starts = finished.block == 0;
    for (int next = 0; next < kPanels; ++next) {
      const ptrdiff_t at = panel + finished.group + next, left = g.columns - at * kPanel;
      m->c[next] = finished.group + next < panels ? g.c + row * g.c_row + at * g.c_panel : nullptr;
      if (!m->c[next]) continue;
      m->columns[next] = lanes(left);
      m->start[next] = g.bias ? _mm512_maskz_loadu_ps(m->columns[next], g.bias + at * kPanel)
                              : _mm512_setzero_ps();
    }
  }
  void prefetch_line(int number, const Meanwhile& m) const {
    const float* from = m.prefetched[number / kTileLines];
    if (from) prefetch_l1(reinterpret_cast<const char*>(from + number % kTileLines * kPanel));
  }
  void prepare_pair(int number, Meanwhile* m) const {
    const int next = number / kTilePairs, pair = number % kTilePairs;
    if (!m->coming[next]) return;
    const float* from = m->coming[next] + 2 / kRowsOfWord * pair * kPanel;
    const ptrdiff_t left = m->left - 2 * pair;
    if constexpr (kParts == 1) {
      const Vec words = left > 0 ? load(from) : zero();
      _mm512_storeu_ps(m->to[next][0] + pair * kTileDepth, words.v);
    } else {
      split_pair<kParts>(from, left, pair, m->to[next], &m->rests[next]);
    }
  }
  /// C += sums, or bias + sums where it has none yet.
  void add_row(int number, const Meanwhile& m) const {
    constexpr int kRows = static_cast<int>(kTileRows);
    const int tile = number / kRows, next = tile / kRowTiles;
    const int r = tile % kRowTiles * kRows + number % kRows;
    if (!m.c[next] || r >= rows) return;
    float* c = m.c[next] + r * g.c_row;
    const __mmask16 columns = m.columns[next];
    const __m512 before = m.starts ? m.start[next] : _mm512_maskz_loadu_ps(columns, c);
    const __m512 sum = _mm512_load_ps(memory.sums[tile] + number % kRows * kPanel);
    _mm512_mask_storeu_ps(c, columns, _mm512_add_ps(before, sum));
  }
  /// The share `kSlot` of kSlots.
  template <int kSlot, int kSlots>
  void do_meanwhile(Meanwhile* m) const {
    const auto share = [](int total, auto f) {
      for (int i = total * kSlot / kSlots; i < total * (kSlot + 1) / kSlots; ++i) f(i);
    };
    share(kPanels * kTileLines, [&](int i) { prefetch_line(i, *m); });
    share(kPanels * kTilePairs, [&](int i) { prepare_pair(i, m); });
    share(kAccumulators * kTileRows, [&](int i) { add_row(i, *m); });
  }

  // Products.

  static constexpr int kProducts = kParts * (kParts + 1) / 2;  // of parts

  void clear() {
    repeat<kAccumulators>([&](auto tile) { unit.template clear<tile>(); });
  }
  void store() {
    repeat<kAccumulators>([&](auto tile) {
      if (tile % kRowTiles < row_tiles(rows)) unit.template store<tile>(memory.sums[tile]);
    });
  }
  /// Products of the parts with each other, smaller ones last: in the order of A's parts, then of
  /// W's, whatever the shape, so that no result depends on it. Two tiles of A stay while the parts
  /// of W pass, four are loaded again.
  void multiply(Place here, const Bfloat16Tile (*w)[kParts], Meanwhile* m) {
    const ptrdiff_t most = row_tiles(rows);
    const uint16_t* tiles = a + (here.block + here.step) * step_of_a;
    const auto load_rows = [&](auto tile, auto part) {
      if (tile >= most) return;
      unit.template load<kRowsTile + tile % 2>(tiles + (tile * kParts + part) * kTileElements);
    };
    repeat<kParts>([&](auto part) {
      if constexpr (kRowTiles <= 2) repeat<kRowTiles>([&](auto tile) { load_rows(tile, part); });
      repeat<kParts - part>([&](auto other) {
        constexpr int kProduct = part * kParts - part * (part - 1) / 2 + other;
        repeat<kPanels>([&](auto next) {
          constexpr int kWeights = kWeightTile + (kProduct * kPanels + next) % 2;
          const bool there = here.group + next < panels;
          if (there) unit.template load<kWeights>(w[next][other]);
          repeat<kRowTiles>([&](auto tile) {
            if (there && tile < most) {
              if constexpr (kRowTiles > 2) load_rows(tile, part);
              unit.template multiply<next * kRowTiles + tile, kRowsTile + tile % 2, kWeights>();
            }
            constexpr int kSlot = (kProduct * kPanels + next) * kRowTiles + tile;
            do_meanwhile<kSlot, kProducts * kAccumulators>(m);
          });
        });
      });
    });
  }
  void run() {
    constexpr int kBuffers = TileMemory<kParts, kPanels>::kBuffers;
    Place here = {}, coming = {}, prefetched = {};
    for (int ahead = 0; ahead < kStepsAhead; ++ahead) advance(&prefetched);
    Meanwhile m = {};
    for (int ahead = 0; ahead < kBuffers - 1; ++ahead) {
      begin_preparing(prefetched, coming, memory.weights[ahead], &m);
      do_meanwhile<0, 1>(&m);
      end_preparing(coming, m);
      advance(&coming);
      advance(&prefetched);
    }
    for (int turn = 0; exists(here); turn = (turn + 1) % kBuffers) {
      begin_preparing(prefetched, coming, memory.weights[(turn + kBuffers - 1) % kBuffers], &m);
      if (here.step == 0) clear();
      multiply(here, memory.weights[turn], &m);
      end_preparing(coming, m);
      for (float*& c : m.c) c = nullptr;
      if (ends_block(here)) {
        store();
        begin_adding(here, &m);
      }
      advance(&here);
      advance(&coming);
      advance(&prefetched);
    }
    do_meanwhile<0, 1>(&m);
  }
};

/// Rows and one panel of a product as a product of its own, for the multiply-adds.
inline Gemm part_of(const Gemm& g, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t panel,
                    ptrdiff_t columns) {
  Gemm part = g;
  part.packed = nullptr;
  part.a += row * g.a_row;
  part.w += panel * g.w_panel;
  if (part.bias) part.bias += panel * kPanel;
  part.c += row * g.c_row + panel * g.c_panel;
  part.rows = rows;
  part.columns = columns;
  return part;
}

/// Up to 64 rows and up to kPanelsAtOnce panels.
template <class Unit, int kParts, int kRowTiles, int kPanels>
void multiply_group(Unit& unit, const Gemm& g, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t panel) {
  const ptrdiff_t panels = smaller(panels_of(g.columns) - panel, kPanelsAtOnce);
  const ptrdiff_t group = (g.first_row + row) / kPackRows;
  const bool finite_rows = static_cast<const float*>(g.packed)[group] == 0.0f;
  uint64_t not_finite = 0;
  if (kParts > 1 && !finite_rows) {  // one part has infinities of its own
    not_finite = ~uint64_t{0};
  } else {
    TileMemory<kParts, kPanels> memory;
    TileProduct<Unit, kParts, kRowTiles, kPanels> product{
        unit, memory, g,     packed_group(g, g.packed, group), packed_step(g, group), row,
        rows, panel,  panels};
    product.run();
    not_finite = product.not_finite;
  }
  for (ptrdiff_t i = 0; i < panels && not_finite != 0; ++i, not_finite >>= 1) {
    if ((not_finite & 1) == 0) continue;
    const ptrdiff_t columns = g.columns - (panel + i) * kPanel;
    gemm(part_of(g, row, rows, panel + i, smaller(columns, kPanel)));
  }
}

template <class Unit, int kParts>
void multiply_with_tiles(const Gemm& g) {
  Unit unit;
  unit.begin();
  for (ptrdiff_t row = 0; row < g.rows; row += kPackRows) {
    const ptrdiff_t rows = smaller(g.rows - row, kPackRows);
    for (ptrdiff_t panel = 0; panel < panels_of(g.columns); panel += kPanelsAtOnce) {
      if (rows > 2 * kTileRows) {
        multiply_group<Unit, kParts, 4, 1>(unit, g, row, rows, panel);
      } else {
        multiply_group<Unit, kParts, 2, 2>(unit, g, row, rows, panel);
      }
    }
  }
  unit.end();
}

template <class Unit>
void gemm_with_tiles(const Gemm& g) {
  if (!takes_tiles(g)) return gemm(g);
  switch (parts_of(g)) {
    case 1:
      return multiply_with_tiles<Unit, 1>(g);
    case 2:
      return multiply_with_tiles<Unit, 2>(g);
    default:
      return multiply_with_tiles<Unit, 3>(g);
  }
}

}  // namespace
}  // namespace onnx_fuse
