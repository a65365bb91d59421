#pragma once

#include <cstdint>
#include <string>

namespace bamba {

std::string HumanBytes(double bytes);      // decimal, as disks and transfers are sold: "19.6 GB"
std::string HumanCount(double n);          // "9.78 B", "16.3 M", "740"
std::string HumanRate(double n);           // "2.08", "34.1", "740", "16.3 k": three digits, since a large model does few things a second
std::string HumanSeconds(double seconds);  // "21 ms", "4.2 s", "3 min 05 s"
std::string Thousands(int64_t n);          // "134,217,728"

}  // namespace bamba
