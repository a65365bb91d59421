#include <cstdio>

#include "base/units.h"
#include "io/checkpoint.h"
#include "model/params.h"

// usage: consumer MODEL
int main(int, char** argv) {
  const bamba::Model model = bamba::LoadModel(argv[1]);
  std::printf("%s parameters\n", bamba::Thousands(bamba::ParameterCount(model.config)).c_str());
}
