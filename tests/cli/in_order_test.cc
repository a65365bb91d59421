#include "cli/in_order.h"

#include <gtest/gtest.h>

namespace bamba::cli {
namespace {

TEST(InOrder, TheFirstComesAtOnceTheOthersWait) {
  std::string shown;
  InOrder order(3, [&](std::string_view piece) { shown += piece; });
  order.Push(0, "a");
  order.Push(2, "e");
  order.Push(1, "c");
  EXPECT_EQ(shown, "a");
  order.Push(2, "f");
  order.Close(2);
  order.Push(0, "b");
  EXPECT_EQ(shown, "ab");
  order.Close(0);
  EXPECT_EQ(shown, "abc");
  order.Push(1, "d");
  EXPECT_EQ(shown, "abcd");
  order.Close(1);
  EXPECT_EQ(shown, "abcdef");
}

TEST(InOrder, ClosedBackwards) {
  std::string shown;
  InOrder order(3, [&](std::string_view piece) { shown += piece; });
  for (size_t i : {2u, 1u, 0u}) {
    order.Push(i, std::string(1, static_cast<char>('0' + i)));
    order.Close(i);
  }
  EXPECT_EQ(shown, "012");
}

}  // namespace
}  // namespace bamba::cli
