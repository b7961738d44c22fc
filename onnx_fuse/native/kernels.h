// The arithmetic of a block as plain functions over pointers and sizes, once per instruction set.
//
// Everything here is float32 unless said otherwise, strides are counted in elements, and no
// function allocates, fails or keeps state. How the work is split does not change a result: every
// element is summed in the same order, of its depth or of its parts. Nor do the rows beside a row,
// but by their number: it may be what makes a matrix unit worth its while.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace onnx_fuse {

/// Columns of a panel: the width of an AVX-512 register, and a multiple of every other one's.
constexpr ptrdiff_t kPanel = 16;

/// Columns of the scores that are computed at once. With more of them the softmax is a running one.
constexpr ptrdiff_t kColumnBlock = 256;

constexpr ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
constexpr ptrdiff_t greater(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
constexpr ptrdiff_t pieces(ptrdiff_t total, ptrdiff_t piece) { return (total + piece - 1) / piece; }
constexpr ptrdiff_t panels_of(ptrdiff_t columns) { return pieces(columns, kPanel); }
constexpr ptrdiff_t round_to_panel(ptrdiff_t columns) { return panels_of(columns) * kPanel; }

/// fp32: an error no larger than that of float32 multiply-adds. bf16x3: three products of bfloat16
/// parts, about 5e-6 of the result; where there is no unit for them, fp32. bf16: A too may be
/// rounded to bfloat16.
enum class Precision : int { kFp32, kBf16x3, kBf16 };

/// A block's weights from which on a few such blocks are more than an L3 holds, in bytes.
constexpr double kFarWeights = 4 << 20;

/// C = A * W + bias (or C += A * W), where W lies in panels of words: the word of row k and a
/// column is at `w[(column / 16) * w_panel + k * w_row + column % 16]`; C has panels in the same
/// sense. A word is an element, or, `w_is_paired`, those of rows 2 k and 2 k + 1 in bfloat16, the
/// first one in its lower half; the depth is even then.
struct Gemm {
  const float* a;  // (rows, depth)
  ptrdiff_t a_row;
  const float* w;
  ptrdiff_t w_row, w_panel;  // words
  bool w_is_paired;
  double block_weights;  // bytes of all that the block has: many of them come from memory
  const float* bias;     // (columns), or null
  float* c;
  ptrdiff_t c_row, c_panel;
  ptrdiff_t rows, columns, depth;
  bool accumulate;
  Precision precision = Precision::kFp32;
  const void* packed = nullptr;  // A as `pack` wrote it, or null
  // Rows of all of `packed`, and which of them is the first one of A: a multiple of kPackRows.
  ptrdiff_t packed_rows = 0, first_row = 0;
};

/// Rows that are packed together.
constexpr ptrdiff_t kPackRows = 64;

/// Floats that n numbers take within attention: as they are, or, `narrow`, rounded to bfloat16 and
/// two of them in a float's place, with zeros up to the depth of a matrix tile.
constexpr ptrdiff_t kTileDepth = 32;
constexpr ptrdiff_t words_of(ptrdiff_t n, bool narrow) {
  return narrow ? pieces(n, kTileDepth) * (kTileDepth / 2) : n;
}

/// Rows of one head: element (row, d) at `data[row * row_stride + (d / 16) * chunk_stride + d %
/// 16]`.
struct HeadRows {
  const float* data;
  ptrdiff_t row_stride, chunk_stride;
};

enum class NormKind : int { kNone, kRms, kLayer, kL2 };

/// Normalisation of a head's row, `weight` and `bias` (may be null) already point at the head. They
/// are the same for all rows, or `weight_row` elements apart.
struct Norm {
  NormKind kind;
  const float* weight;  // (dim)
  const float* bias;    // (dim)
  ptrdiff_t weight_row;
  float epsilon;
  const float* statistics;  // (rows, 2): mean and factor, or null to take them from the row itself
};

/// Rotation tables of a head: row r at `cos + r * cos_row`; `dims` is 0 for no rotation.
struct Rope {
  const float* cos;
  const float* sin;
  ptrdiff_t cos_row, sin_row;
  ptrdiff_t dims;
  bool interleaved;
};

/// Reads `rows` rows of all heads and writes (mean, factor) of each to `statistics`.
struct RowStatistics {
  HeadRows source;        // of head 0
  ptrdiff_t head_stride;  // from one head to the next
  ptrdiff_t heads, dim, rows;
  NormKind kind;
  float epsilon;
  float* statistics;  // (rows, 2)
};

/// Norm and rotation of K, joined after the past, written as panels of K transposed
/// [ceil(total / 16)][words_of(dim, narrow)][16], and as it is to `present` (total, dim); one of
/// them may be null. Only positions [begin, end): `begin` is a multiple of 16 with panels.
struct KeyTask {
  HeadRows source;
  Norm norm;
  Rope rope;
  const float* past;  // (past_seq, dim), or null
  ptrdiff_t past_seq, seq, dim;
  float* panels;
  bool narrow;
  float* present;
  float* greatest;  // of K's elements, only with panels; NaN if one is not finite; or null
  float* staging;   // 16 * round_to_panel(dim)
  ptrdiff_t begin, end;
};

/// Joins V after the past as rows of `out_row` elements, zero padded beyond `dim`; only positions
/// [begin, end).
struct ValueTask {
  HeadRows source;
  const float* past;  // (past_seq, dim), or null
  ptrdiff_t past_seq, seq, dim;
  float* out;
  ptrdiff_t out_row;
  ptrdiff_t begin, end;
};

/// V rounded to bfloat16, two positions in a float's place:
/// [ceil(dim / 16)][words_of(rows, true)][16], with zeros where there is no position.
struct NarrowTask {
  HeadRows source;
  ptrdiff_t rows, dim;
  float* out;
  ptrdiff_t out_panel;  // from one panel to the next
};

/// A tensor that broadcasts over (rows, columns) of one head's scores, or of its context.
struct ScoreTerm {
  const void* data;  // null: absent
  ptrdiff_t row_stride, column_stride;
};

/// What the columns [begin, end) alone give: to be combined with others, if `results` is not null.
/// Row r's at `results + r * part_row(value_dim)`: its output before the division, and behind it
/// the greatest score and the sum of the powers.
struct Part {
  float* results;
  ptrdiff_t begin, end;
};
constexpr ptrdiff_t part_row(ptrdiff_t value_dim) { return round_to_panel(value_dim) + kPanel; }

/// Attention of `rows` query rows of one head over all of K and V, or over a part of their columns.
struct AttendTask {
  HeadRows query;
  Norm norm;
  Rope rope;
  // As KeyTask writes them, or null: K's rows are transposed on the way.
  const float* key_panels;
  HeadRows key;        // then these
  const float* value;  // element (t, d) at (d / 16) * value_panel + t * value_row + d % 16
  // As NarrowTask writes them, panels so many elements apart: the products are of bfloat16 then.
  const float* narrow_value;
  ptrdiff_t narrow_panel;
  ptrdiff_t value_row, value_panel;
  ptrdiff_t first_row, rows, total, past, dim, value_dim;
  ScoreTerm bias, mask, fill;  // float, bool, float
  const float* sink;           // a logit for each row, or null
  ptrdiff_t sink_row;
  float scale, softcap;
  // A row sees columns up to its own, past + row * row_step, and `window` of them at most (0: all).
  bool causal;
  ptrdiff_t window, row_step;
  bool window_ends_inside;  // of rows behind `total`, too: theirs is that of the last one inside
  bool zero_nan;
  bool zero_empty;   // a row that sees nothing has no weights; else they are NaN
  bool skip_masked;  // V is finite: what is hidden need not be multiplied by zero
  float key_bound;   // no element of K is greater; NaN: not known
  float* out;        // row r at out + r * out_row
  ptrdiff_t out_row;
  float* weights;  // row r at weights + r * total, or null; not with narrow_value, nor in parts
  ScoreTerm gate;  // float: multiplies the rows that are done, which isn't the kernels' work
  float* scratch;  // as many elements as attend_scratch says
  Part part;
};

/// One instruction set: a name, whether this machine has it, and its functions.
struct Kernels {
  const char* name;
  bool (*available)();
  bool by_name_only;  // never chosen unless ONNX_FUSE_ISA asks for it
  void (*gemm)(const Gemm&);
  /// Floats that `pack` writes for this product, 0 if it is better done from A as it is.
  size_t (*packed_floats)(const Gemm&);
  /// Packs rows [row, row + kPackRows) of A, or those that are left.
  void (*pack)(const Gemm&, void* packed, ptrdiff_t row);
  void (*row_statistics)(const RowStatistics&);
  void (*prepare_key)(const KeyTask&);
  void (*prepare_value)(const ValueTask&);
  /// The greatest absolute value; NaN if one is not finite.
  float (*greatest)(const HeadRows&, ptrdiff_t rows, ptrdiff_t dim);
  void (*attend)(const AttendTask&);
  /// The output of rows whose `parts` parts lie `stride` elements apart, from `part.results` on.
  void (*combine)(const AttendTask&, ptrdiff_t parts, ptrdiff_t stride);
  /// `weight_columns`: of the weights that are written, 0 without them.
  ptrdiff_t (*attend_scratch)(ptrdiff_t dim, ptrdiff_t value_dim, ptrdiff_t weight_columns);
  /// Null where bfloat16 has no faster products within attention.
  void (*narrow_value)(const NarrowTask&);
};

/// Each by a file of its own, kernels_<isa>.cpp; those of this architecture are compiled in.
extern const Kernels kAmxKernels, kAmxStandInKernels, kAvx512Bf16Kernels, kAvx512Kernels,
    kAvx2Kernels, kNeonBf16Kernels, kNeonKernels, kPortableKernels;

}  // namespace onnx_fuse
