#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace bamba {

// Lets text through up to the first stop string, of which no part is ever let through: text that may still become one is held back.
// The result does not depend on how the text is cut into pieces.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops);  // empty ones are ignored

  std::string Push(std::string_view piece);  // what may be shown now
  std::string Finish();                      // the held text, if no stop string came; the text has ended
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace bamba
