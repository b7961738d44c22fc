// AMX in software, for tests on machines that have AVX-512 and not AMX.
//
// There its instructions raise SIGILL; the handler reads them from memory as the processor would,
// does what Intel's manual says (Software Developer's Manual, volume 2, chapter 3 and the exception
// classes AMX-E1 to AMX-E6), and goes on behind them. Whatever the manual forbids ends the process
// with a message that names the rule. Of the configurations, palettes 0 and 1 exist, and no
// instruction is restarted (start_row is 0).
//
// This file's functions of amx_system.h say that the machine has AMX. Where it has, they ask it,
// and nothing is emulated.
#pragma once

#include "amx_system.h"

namespace amx_emulator {

/// What amx_system.h answers, to be changed before the kernel asks.
struct Answers {
  bool os_saves_states = true, tiles = true, bfloat16 = true;
  uint64_t saved_states = uint64_t{7} << 5 | uint64_t{3} << 17 | 7;
  long request = 0;       // what ARCH_REQ_XCOMP_PERM returns
  bool permitted = true;  // what ARCH_GET_XCOMP_PERM says then
};
extern Answers answers;

/// Instructions that were executed in software since the start, in all threads.
struct Counts {
  long configure, release, zero, load, store, multiply;
};
Counts counts();

/// Whether this machine has no AMX of its own.
bool emulates();

/// Lets the instructions be executed; asking for permission through amx_system.h does that, too.
void install();

}  // namespace amx_emulator
