#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace bamba::cli {

// Texts that grow side by side, shown one after the other: the first that is not closed goes out as it comes, the later ones wait for their turn.
class InOrder {
 public:
  InOrder(size_t texts, std::function<void(std::string_view)> show) : waiting_(texts), show_(std::move(show)) {}

  void Push(size_t text, std::string_view piece) {
    if (text == front_)
      show_(piece);
    else
      waiting_[text].text += piece;
  }
  // The text is whole. Texts may be closed in any order.
  void Close(size_t text) {
    waiting_[text].closed = true;
    while (front_ < waiting_.size() && waiting_[front_].closed)
      if (++front_ < waiting_.size()) show_(std::exchange(waiting_[front_].text, {}));
  }

 private:
  struct Waiting {
    std::string text;
    bool closed = false;
  };
  std::vector<Waiting> waiting_;
  std::function<void(std::string_view)> show_;
  size_t front_ = 0;
};

}  // namespace bamba::cli
