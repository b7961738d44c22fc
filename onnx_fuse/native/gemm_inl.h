// Products on panels, for whichever vector type was included before.
//
// A tile of R rows x P panels is accumulated in registers over the whole depth: in each step P
// panels' 16 words are loaded and what they hold meets the R rows' elements of A, each of which is
// broadcast. The weights are read in the order in which they lie, A's rows from L1.
#pragma once

#include <string.h>

#include <utility>

#include "kernels.h"
#include "processor.h"

/// Inlines all that a function calls before anything is optimised. With what sanitizers add, it
/// would take ten times as long to compile.
#if defined(ONNX_FUSE_SANITIZED)
#define ONNX_FUSE_FLAT
#else
#define ONNX_FUSE_FLAT [[gnu::flatten]]
#endif

namespace onnx_fuse {
namespace {

/// Calls f with the constants 0 to kCount - 1.
template <class F, int... kNumbers>
inline void repeat(std::integer_sequence<int, kNumbers...>, F f) {
  (f(std::integral_constant<int, kNumbers>()), ...);
}
template <int kCount, class F>
inline void repeat(F f) {
  repeat(std::make_integer_sequence<int, kCount>(), f);
}

constexpr ptrdiff_t kVecs = kPanel / kLanes;  // registers of a panel

/// Terms that are summed in a register before they are added to C. A running sum of n random terms
/// errs by about eps * n / sqrt(2) of one term, sums of pieces only by eps * sqrt(n * piece / 2):
/// at a depth of 768 less than half. 128 steps of a tile hide the additions to C (1 %).
constexpr ptrdiff_t kPiece = 128;

/// Floats of A that share one pass over the weights: a quarter of a 1 MiB L2.
constexpr ptrdiff_t kRowsInCache = 64 * 1024;

/// Bytes ahead in a panel that other tiles of rows have brought to L2 before: 32 steps of 11 to 24
/// cycles cover its latency.
constexpr ptrdiff_t kAhead = 2048;
constexpr ptrdiff_t kWordBytes = sizeof(float);

/// Who reads a tile's panels: other tiles of rows as well; or it alone, from L3 or from memory, and
/// then to which cache it prefetches them; or it alone, from the core's own caches.
enum class Reader { kOneOfMany, kAloneToL1, kAloneToL2, kAloneNear };

/// Panels that a tile of rows takes which is alone: as many as registers hold. To L1, three from
/// three rows on: four, which the hardware prefetches, are treated in another way (Prefetch).
constexpr int panels_alone(int rows, bool to_l1) {
  const int most = panels_at_once(rows);
  return to_l1 && rows > 2 && most > 3 ? 3 : most;
}

/// What the steps of a tile prefetch: some bytes ahead in each panel. The last steps of a tile that
/// is alone prefetch the next tile's panels, which lie behind its own.
template <int R, int P, Reader kReader>
struct Prefetch {
  static constexpr bool alone = kReader != Reader::kOneOfMany;
  static constexpr bool is_near = kReader == Reader::kAloneNear;
  static constexpr bool to_l1 = kReader == Reader::kAloneToL1;
  /// The hardware prefetches four panels of one or two rows once it has missed some of each: they
  /// are prefetched a little ahead (Zen 5, 2 rows of a depth of 768: 178 us, with all of this 184),
  /// and one row, where nothing is done but to read, not at all (169 us, and 180 if asked).
  static constexpr bool by_hardware = to_l1 && P > 3;
  /// Registers of half a line miss twice as often, and of one row the hardware prefetches all but
  /// the beginnings (Zen 4, AVX2, a depth of 768 from memory: 424 us if all is prefetched, 362 so).
  static constexpr bool begins = !to_l1 && R == 1 && kVecs > 1;
  static constexpr bool any = !is_near && (!by_hardware || R > 1);
  /// Of all panels of a tile that is alone: latency times bandwidth, and some more (Zen 5, a depth
  /// of 768, 12 rows of 2 panels: 285 us with 4 KiB for each panel, 248 with the next tile's panels
  /// prefetched in time, 230 with 6 KiB as well; Zen 4, 8 rows, to L2: 470 us with 12 KiB, 459 with
  /// 24, 452 with 48).
  static constexpr ptrdiff_t window = (to_l1 ? 12 : begins ? 8 : 24) * 1024;
  static constexpr ptrdiff_t bytes = alone && !by_hardware ? window / P : kAhead;
  static constexpr ptrdiff_t last =
      any && alone && !by_hardware && P > 1 ? bytes / (kPanel * kWordBytes) : 0;

  static void prefetch(const char* p) {
    kReader == Reader::kAloneToL2 ? prefetch_l2(p) : prefetch_l1(p);
  }

  /// Of a piece's steps, `left` before the tile's end, those before the last.
  static ptrdiff_t inside(ptrdiff_t piece, ptrdiff_t left) {
    if (last == 0) return piece;
    const ptrdiff_t before = left - last;
    return before > piece ? piece : before > 0 ? before : 0;
  }
  /// How far ahead the last steps prefetch: what lies behind a panel is another of the same tile.
  static ptrdiff_t beyond(ptrdiff_t w_panel) { return bytes + (P - 1) * w_panel * kWordBytes; }
};

struct Tile {
  const float* a;
  ptrdiff_t a_row;
  const float* w;
  ptrdiff_t w_row, w_panel;
  const float* bias;  // 16 * panels elements, or null
  float* c;
  ptrdiff_t c_row, c_panel;
  ptrdiff_t depth;
  bool accumulate;
  ptrdiff_t count;    // of such tiles side by side, if they are near
  const float* next;  // what will be read soon, or null: it is brought to L2 meanwhile
  // Bytes of it for each step, if the tile has one panel; else as many as of w.
  ptrdiff_t next_step;
};

/// What a word holds is multiplied as floats.
struct Floats {
  template <bool kInPlace>
  static Vec accumulate(Vec a, Vec w, Vec sum) {
    return kInPlace ? fma_in_place(a, w, sum) : fma(a, w, sum);
  }
};

/// A word of weights is a number.
struct Numbers : Floats {
  static constexpr int kTerms = 1;  // elements of A that meet a word
  static Vec weights(const float* words, int) { return load(words); }
};

/// It is two of bfloat16, each of which is widened, exactly.
struct WidenedPairs : Floats {
  static constexpr int kTerms = 2;
  static Vec weights(const float* words, int term) {
    return term == 0 ? lower_halves(load(words)) : upper_halves(load(words));
  }
};

/// C = bias + sums, or C += sums. Without a branch or a variable index among them, and with a copy
/// of what the stores could change for all the compiler knows, the sums come from their registers;
/// by way of the stack it took 80 cycles instead of 30 for each piece of 12 x 2 panels (Zen 5).
template <bool kAdds, int R, int P>
inline void store_sums(const Vec (&sums)[R][P][kVecs], const Tile& t) {
  const float* bias = t.bias;
  float* const c = t.c;
  const ptrdiff_t c_row = t.c_row, c_panel = t.c_panel;
  repeat<P>([&](auto p) {
    repeat<kVecs>([&](auto v) {
      const Vec start = bias ? load(bias + p * kPanel + v * kLanes) : zero();
      repeat<R>([&](auto r) {
        float* to = c + r * c_row + p * c_panel + v * kLanes;
        store(to, add(kAdds ? load(to) : start, sums[r][p][v]));
      });
    });
  });
}

/// Where a tile is in its depth. `Word` says what a word is.
template <class Word, int R, int P, Reader kReader>
struct Walk {
  using Ahead = Prefetch<R, P, kReader>;
  using Sums = Vec[R][P][kVecs];
  /// Several steps in a turn: where a single panel leaves registers for it, and memory is not
  /// waited for: four prefetches at once are slower than one by one (4 rows of a depth of 768: 391
  /// us, 368).
  static constexpr int kTurn = P == 1 && (Ahead::is_near || !Ahead::alone) ? kStepsOfTurn : 1;

  const Tile& t;
  // Three rows share a pointer: base, base + stride and base + 2 * stride are addresses that x86
  // forms for free, and the pointers of 12 rows then fit the general registers.
  const float* a[(R + 2) / 3];
  // Few instructions beside the multiply-adds, for cores that decode four at once: one pointer
  // moves along the weights, the next panel lies at a distance from it (but for single panels), and
  // it says when a part of the depth ends.
  const float* w;
  const char* next;
  const ptrdiff_t to_next;

  explicit Walk(const Tile& tile)
      : t(tile),
        w(tile.w),
        next(reinterpret_cast<const char*>(tile.next ? tile.next : tile.w)),
        to_next(next - reinterpret_cast<const char*>(tile.w)) {
    for (int g = 0; g < (R + 2) / 3; ++g) a[g] = t.a + 3 * g * t.a_row;
  }

  void prefetch(ptrdiff_t ahead, int step) {
    for (int p = 0; p < P; ++p) {
      Ahead::prefetch(reinterpret_cast<const char*>(w + step * kPanel + p * t.w_panel) + ahead);
    }
  }

  /// For so many steps; at least two tiles of rows share the next panel's lines.
  void prefetch_next(int steps) {
    if constexpr (P == 1) {
      for (int line = 0; line < (steps + 1) / 2; ++line) {
        prefetch_l2(next + line * kPanel * kWordBytes);
      }
      next += steps * t.next_step;
    } else {
      prefetch_l2(reinterpret_cast<const char*>(w) + to_next);
    }
  }

  /// `w`, or what is so many steps behind it, meets the rows.
  void multiply(Sums& sums, int step) const {
    repeat<Word::kTerms>([&](auto term) {
      Vec x[P][kVecs];
      repeat<P>([&](auto p) {
        repeat<kVecs>([&](auto v) {
          x[p][v] = Word::weights(w + step * kPanel + p * t.w_panel + v * kLanes, term);
        });
      });
      repeat<R>([&](auto r) {
        const Vec y = broadcast(a[r / 3][(r % 3) * t.a_row + step * Word::kTerms + term]);
        repeat<P>([&](auto p) {
          repeat<kVecs>([&](auto v) {
            sums[r][p][v] = Word::template accumulate<(kTurn > 1)>(y, x[p][v], sums[r][p][v]);
          });
        });
      });
    });
  }

  void advance(int steps) {
    for (int g = 0; g < (R + 2) / 3; ++g) a[g] += steps * Word::kTerms;
  }

  /// Some steps, which prefetch what lies so many bytes ahead. By turns of several, if they lie one
  /// behind the other.
  template <bool kPrefetches>
  void go(ptrdiff_t steps, ptrdiff_t ahead, Sums& sums) {
    const float* const end = w + steps * t.w_row;
    if constexpr (kTurn > 1) {
      const float* const last = t.w_row == kPanel ? end - steps % kTurn * kPanel : w;
      for (; w != last; w += kTurn * kPanel) {
        repeat<kTurn>([&](auto step) {
          if constexpr (kPrefetches) prefetch(ahead, step);
          multiply(sums, step);
        });
        if constexpr (!Ahead::alone) prefetch_next(kTurn);
        advance(kTurn);
      }
    }
    for (; w != end; w += t.w_row) {
      if constexpr (kPrefetches) prefetch(ahead, 0);
      if constexpr (!Ahead::alone) prefetch_next(1);
      multiply(sums, 0);
      advance(1);
    }
  }
};

/// One tile. Sums are registers only where none of their indexes is a variable once everything is
/// inlined; and where it is not inlined in time, GCC drops calls of what only prefetches.
template <class Word, int R, int P, Reader kReader>
ONNX_FUSE_FLAT void multiply_tile(const Tile& t) {
  using Ahead = Prefetch<R, P, kReader>;
  Walk<Word, R, P, kReader> walk(t);
  constexpr ptrdiff_t kSteps = kPiece / Word::kTerms;
  const ptrdiff_t steps = t.depth / Word::kTerms;
  ptrdiff_t left = steps;
  do {
    const ptrdiff_t piece = left < kSteps ? left : kSteps;
    Vec sums[R][P][kVecs] = {};
    const ptrdiff_t inside = Ahead::inside(piece, left);
    walk.template go<Ahead::any && !Ahead::begins>(inside, Ahead::bytes, sums);
    if constexpr (Ahead::last > 0) {
      walk.template go<Ahead::any>(piece - inside, Ahead::beyond(t.w_panel), sums);
    }
    if (left == steps && !t.accumulate) {
      store_sums<false>(sums, t);
    } else {
      store_sums<true>(sums, t);
    }
    left -= piece;
  } while (left > 0);
}

/// All tiles that lie side by side. Attention's scores have so little depth that calls would count
/// (AVX2, 60 rows of 512 keys, head_dim 32: 61.4 to 58.7 us).
template <class Word, int R, int P>
ONNX_FUSE_FLAT void multiply_near(const Tile& first) {
  Tile t = first;
  for (ptrdiff_t i = 0; i < first.count; ++i) {
    multiply_tile<Word, R, P, Reader::kAloneNear>(t);
    t.w += P * t.w_panel;
    t.c += P * t.c_panel;
    if (t.bias) t.bias += P * kPanel;
  }
}

using TileFunction = void (*)(const Tile&);

/// Panels that a tile of rows takes which shares them with other tiles.
constexpr ptrdiff_t kShared = panels_at_once(kMaxRows);

/// Tiles of R = 1 .. kMaxRows rows: beside others with 1 and kShared panels, alone with
/// panels_alone(R) by either cache or, where steps go by turns, near, or with 1: then the weights
/// are read in one stream.
struct TileTable {
  struct Row {
    TileFunction one, shared, alone_to_l1, alone_to_l2, stream, alone_near = nullptr;
  };
  Row rows[kMaxRows + 1];
};

template <class Word, int R>
constexpr void fill_tiles(TileTable* table) {
  table->rows[R] = {multiply_tile<Word, R, 1, Reader::kOneOfMany>,
                    multiply_tile<Word, R, kShared, Reader::kOneOfMany>,
                    multiply_tile<Word, R, panels_alone(R, true), Reader::kAloneToL1>,
                    multiply_tile<Word, R, panels_alone(R, false), Reader::kAloneToL2>,
                    multiply_tile<Word, R, 1, Reader::kAloneToL1>};
  if constexpr (kStepsOfTurn > 1) {
    table->rows[R].alone_near = multiply_near<Word, R, panels_alone(R, false)>;
  }
  if constexpr (R > 1) fill_tiles<Word, R - 1>(table);
}
template <class Word>
constexpr TileTable make_tiles() {
  TileTable table = {};
  fill_tiles<Word, kMaxRows>(&table);
  return table;
}
constexpr TileTable kNumberTiles = make_tiles<Numbers>();
constexpr TileTable kWidenedTiles = make_tiles<WidenedPairs>();

/// Calls f(first, count) for even shares of `rows` of at most kMost.
template <int kMost = kMaxRows, class F>
inline void for_row_tiles(ptrdiff_t rows, F f) {
  const ptrdiff_t tiles = pieces(rows, kMost);
  if (tiles == 0) return;
  const ptrdiff_t fewest = rows / tiles, greater = rows % tiles;
  for (ptrdiff_t i = 0, first = 0; i < tiles; ++i) {
    const ptrdiff_t count = i < greater ? fewest + 1 : fewest;
    f(first, static_cast<int>(count));
    first += count;
  }
}

/// The product's rows from `row` on, `panel` and those beside it.
inline Tile tile_at(const Gemm& g, ptrdiff_t row, ptrdiff_t panel) {
  Tile t = {};
  t.a = g.a + row * g.a_row;
  t.a_row = g.a_row;
  t.w = g.w + panel * g.w_panel;
  t.w_row = g.w_row;
  t.w_panel = g.w_panel;
  t.bias = g.bias ? g.bias + panel * kPanel : nullptr;
  t.c = g.c + row * g.c_row + panel * g.c_panel;
  t.c_row = g.c_row;
  t.c_panel = g.c_panel;
  t.depth = g.depth;
  t.accumulate = g.accumulate;
  t.count = 1;
  return t;
}

/// The last panel when only `valid` of its columns exist in C and in the bias.
void multiply_last_panel(const Gemm& g, const TileTable& tiles, ptrdiff_t panel, ptrdiff_t valid) {
  float bias[kPanel] = {};
  float c[kMaxRows * kPanel];
  const size_t bytes = static_cast<size_t>(valid) * sizeof(float);
  if (g.bias) memcpy(bias, g.bias + panel * kPanel, bytes);
  for_row_tiles(g.rows, [&](ptrdiff_t first, int count) {
    Tile tile = tile_at(g, first, panel);
    float* out = tile.c;
    if (g.accumulate) {
      for (int r = 0; r < count; ++r) memcpy(c + r * kPanel, out + r * g.c_row, bytes);
    }
    tile.bias = bias;
    tile.c = c;
    tile.c_row = kPanel;
    tiles.rows[count].one(tile);
    for (int r = 0; r < count; ++r) memcpy(out + r * g.c_row, c + r * kPanel, bytes);
  });
}

/// What a tile of rows, one of `tiles`, prefetches to L2 while a group of `width` panels is
/// multiplied: a panel of the next group, or, where a group is one panel, its share of the next
/// one. If one tile prefetched all of it, memory would wait while the others multiply (AVX2, 8 rows
/// of a depth of 768: 415 us, shared 330).
void prefetch_next_group(const Gemm& g, ptrdiff_t panel, ptrdiff_t width, ptrdiff_t index,
                         ptrdiff_t tiles, Tile* tile) {
  const ptrdiff_t coming = panel + width;
  if (width > 1) {
    const bool any = index < width && coming + index < g.columns / kPanel;
    if (any) tile->next = g.w + (coming + index) * g.w_panel;
  } else if (coming < g.columns / kPanel && g.w_row == kPanel) {
    tile->next = g.w + coming * g.w_panel + index * (g.w_panel / tiles);
    tile->next_step = kPanel * kWordBytes / tiles;
  }
}

/// What attention multiplies was written just before. Without turns of several steps, which
/// prefetches would disturb, it is treated like weights.
inline bool is_near(const Gemm& g) { return kStepsOfTurn > 1 && g.block_weights == 0; }

/// To L1, or to L2? What is near the hardware prefetches for one or two rows (Zen 4, one row of
/// 256: 12 us from L3, 14 if prefetched to L2; of 768, from memory: 328 and 291).
inline bool prefetches_to_l1(const Gemm& g, ptrdiff_t rows) {
  return kPrefetchesToL1 || (rows <= 2 && g.block_weights < kFarWeights);
}

/// To L1, memory delivers one stream faster than several, up to 8 rows faster than they are
/// multiplied with one panel at a time (Zen 5, float32: 8 rows of 768 280 to 228 us). One or two
/// rows of float32 the hardware prefetches. Bfloat16 is half as many bytes: only one row is read so
/// (122 to 95 us). Four MiB an L3 still holds (512 x 8, 8 rows: 73 us, in one stream 84).
inline bool takes_stream(const Gemm& g, ptrdiff_t rows) {
  if (!kPrefetchesToL1 || g.block_weights <= kFarWeights || rows > kMaxRows) return false;
  return g.w_is_paired ? rows == 1 : rows > 2 && rows <= 8;
}

/// Full panels of the rows that the caches hold.
void multiply_rows(const Gemm& g, const TileTable& tiles, ptrdiff_t row, ptrdiff_t rows) {
  const ptrdiff_t panels = g.columns / kPanel;
  const bool few = rows <= kMaxRows;
  const bool streams = takes_stream(g, rows), to_l1 = prefetches_to_l1(g, rows), near = is_near(g);
  const ptrdiff_t most = streams ? 1
                         : few   ? panels_alone(static_cast<int>(rows), to_l1 && !near)
                                 : kShared;
  for (ptrdiff_t panel = 0; panel < panels;) {
    const ptrdiff_t left = panels - panel;
    const ptrdiff_t width = left >= most ? most : left >= kShared ? kShared : 1;
    const bool alone = few && width == most;
    const ptrdiff_t in_turn = alone && near ? left / width : 1;
    ptrdiff_t index = 0;
    for_row_tiles(rows, [&](ptrdiff_t first, int count) {
      const TileTable::Row& functions = tiles.rows[count];
      const TileFunction function = streams          ? functions.stream
                                    : alone && near  ? functions.alone_near
                                    : alone && to_l1 ? functions.alone_to_l1
                                    : alone          ? functions.alone_to_l2
                                    : width == 1     ? functions.one
                                                     : functions.shared;
      Tile tile = tile_at(g, row + first, panel);
      tile.count = in_turn;
      if (!few) prefetch_next_group(g, panel, width, index++, pieces(rows, kMaxRows), &tile);
      function(tile);
    });
    panel += in_turn * width;
  }
}

void multiply(const Gemm& g, const TileTable& tiles) {
  ptrdiff_t block = g.rows;
  if (g.rows * g.depth > kRowsInCache) {
    block = kRowsInCache / g.depth / kMaxRows * kMaxRows;
    if (block < kMaxRows) block = kMaxRows;
  }
  for (ptrdiff_t row = 0; row < g.rows; row += block) {
    multiply_rows(g, tiles, row, smaller(g.rows - row, block));
  }
  const ptrdiff_t valid = g.columns % kPanel;
  if (valid > 0) multiply_last_panel(g, tiles, g.columns / kPanel, valid);
}

/// Rows that are a multiple of 4 KiB apart fall into the same 8 lines of L1, and a tile reads up to
/// 12 of them side by side: those are copied to an odd number of cache lines apart (8 rows of a
/// depth of 1024: 743 to 660 us; below 5 rows, and at 512, it is no gain).
constexpr ptrdiff_t kConflict = 1024;
inline bool is_spread(const Gemm& g) { return g.a_row % kConflict == 0 && g.packed_rows > 4; }
inline ptrdiff_t spread_stride(const Gemm& g) { return g.depth + kPanel; }

size_t packed_floats(const Gemm& g) {
  return is_spread(g) ? static_cast<size_t>(g.packed_rows * spread_stride(g)) : 0;
}

void pack(const Gemm& g, void* packed, ptrdiff_t row) {
  float* out = static_cast<float*>(packed);
  for (ptrdiff_t r = row; r < g.rows && r < row + kPackRows; ++r) {
    const size_t bytes = static_cast<size_t>(g.depth) * sizeof(float);
    memcpy(out + r * spread_stride(g), g.a + r * g.a_row, bytes);
  }
}

void gemm(const Gemm& g) {
  Gemm product = g;
  if (g.packed) {
    product.a_row = spread_stride(g);
    product.a = static_cast<const float*>(g.packed) + g.first_row * product.a_row;
  }
  multiply(product, g.w_is_paired ? kWidenedTiles : kNumberTiles);
}

}  // namespace
}  // namespace onnx_fuse
