#include "engine/scheduler.h"

#include <algorithm>

#include "base/check.h"

namespace bamba {

size_t CountAdmitted(std::span<const Demand> waiting, Demand free) {
  size_t admitted = 0;
  for (const Demand& demand : waiting) {
    if (demand.slots > free.slots || demand.pages > free.pages) break;
    free.slots -= demand.slots, free.pages -= demand.pages;
    admitted++;
  }
  return admitted;
}

void ShareRows(std::span<const int64_t> unread, const StepRows& step, std::span<int64_t> rows) {
  const auto sequences = static_cast<int64_t>(unread.size());
  CHECK_MSG(sequences <= step.most && rows.size() == unread.size(), "{} sequences, {} rows", sequences, step.most);
  std::fill(rows.begin(), rows.end(), 1);
  const int64_t prompts = std::count_if(unread.begin(), unread.end(), [](int64_t n) { return n > 1; });
  int64_t left = step.most - sequences;
  if (prompts < sequences) left = std::min(left, step.prompts_beside_text - prompts);

  // Each round gives the prompts that want more an equal share. What the short ones leave goes round again.
  while (left > 0) {
    int64_t hungry = 0;
    for (size_t i = 0; i < unread.size(); i++) hungry += rows[i] < unread[i];
    if (hungry == 0) break;
    const int64_t share = std::max<int64_t>(1, left / hungry);
    for (size_t i = 0; i < unread.size() && left > 0; i++) {
      const int64_t more = std::min({share, left, unread[i] - rows[i]});
      rows[i] += more, left -= more;
    }
  }
}

}  // namespace bamba
