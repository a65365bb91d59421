#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace bamba {

// Who begins, and how many tokens of each sequence a step runs: pure functions of what there is.

// What a request takes when it begins, and holds until its end: a state slot for each completion, and pages for all tokens it may come to.
struct Demand {
  int64_t slots = 1, pages = 0;
};

// How many of those that wait begin now, in the order of their coming: nobody overtakes, so that a large one isn't kept waiting by small ones.
size_t CountAdmitted(std::span<const Demand> waiting, Demand free);

// Rows of a step.
struct StepRows {
  int64_t most = 0;             // of all sequences; never less than there are sequences
  int64_t prompts_beside_text;  // of prompts in a step that adds to texts too: those wait for no long prompt
};

// unread[i]: tokens that sequence i has not read, at least 1: what is left of its prompt, or the token that was chosen last. Writes to rows[i] how many it
// reads in this step: each sequence at least one; single tokens first, then the prompts, in equal shares as far as they need them.
void ShareRows(std::span<const int64_t> unread, const StepRows& step, std::span<int64_t> rows);

}  // namespace bamba
