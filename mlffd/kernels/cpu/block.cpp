// SPDX-License-Identifier: MIT
// Reads a weight block, the file that mlffd/kernels/block.py writes; the layout is described there.
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernel.hpp"

namespace mlffd {

namespace {

constexpr uint32_t block_format = 1;

struct Header {
  char magic[8];
  uint32_t format, n_entries;
  char family[16];
  uint64_t n_bytes;
  uint32_t checksum, unused;
};

struct Entry {
  char name[64];
  uint64_t offset, count;
};

uint32_t crc32(const unsigned char *bytes, size_t n_bytes) {
  static const std::vector<uint32_t> table = [] {
    std::vector<uint32_t> values(256);
    for (uint32_t k = 0; k < 256; ++k) {
      uint32_t value = k;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0u);
      values[k] = value;
    }
    return values;
  }();
  uint32_t sum = 0xFFFFFFFFu;
  for (size_t k = 0; k < n_bytes; ++k) sum = table[(sum ^ bytes[k]) & 0xFF] ^ (sum >> 8);
  return ~sum;
}

Header checked_header(const unsigned char *bytes, size_t n_bytes) {
  Header header;
  if (n_bytes < sizeof header || memcmp(bytes, "MLFFDBLK", 8) != 0) fail("not a weight block of mlffd");
  memcpy(&header, bytes, sizeof header);
  if (header.format != block_format)
    fail("the weight block has format %u, this mlffd reads format %u: export it again", header.format,
         block_format);
  if (header.n_bytes != n_bytes)
    fail("the weight block is cut: %zu bytes of %llu", n_bytes, (unsigned long long)header.n_bytes);
  if (header.checksum != crc32(bytes + sizeof header, n_bytes - sizeof header))
    fail("the weight block is damaged: its checksum is wrong");
  if (header.n_entries > (n_bytes - sizeof header) / sizeof(Entry)) fail("the weight block is damaged");
  return header;
}

}  // namespace

struct Block::Content {
  std::string family;
  std::map<std::string, std::vector<double>> arrays;
};

Block::Block(const void *block, size_t n_bytes) : content_(nullptr) {
  const auto *bytes = static_cast<const unsigned char *>(block);
  const Header header = checked_header(bytes, n_bytes);
  Content content;
  content.family = std::string(header.family, strnlen(header.family, sizeof header.family));
  for (uint32_t k = 0; k < header.n_entries; ++k) {
    Entry entry;
    memcpy(&entry, bytes + sizeof header + k * sizeof entry, sizeof entry);
    const std::string name(entry.name, strnlen(entry.name, sizeof entry.name));
    if (entry.offset > n_bytes || entry.count > (n_bytes - entry.offset) / sizeof(double))
      fail("the weight block is damaged: %s lies outside it", name.c_str());
    std::vector<double> &values = content.arrays[name];
    values.resize(entry.count);
    if (entry.count) memcpy(values.data(), bytes + entry.offset, entry.count * sizeof(double));
    for (double value : values)
      if (!std::isfinite(value)) fail("%s holds values that are not finite", name.c_str());
  }
  content_ = new Content(std::move(content));
}

Block::~Block() { delete content_; }

const char *Block::family() const { return content_->family.c_str(); }

bool Block::has(const char *name) const { return content_->arrays.count(name) > 0; }

size_t Block::count(const char *name) const {
  const auto found = content_->arrays.find(name);
  if (found == content_->arrays.end()) fail("the weight block has no %s", name);
  return found->second.size();
}

const double *Block::array(const char *name, size_t n_values) const {
  const size_t found = count(name);
  if (found != n_values) fail("%s has %zu values where %zu are expected", name, found, n_values);
  return content_->arrays.find(name)->second.data();
}

double Block::number(const char *name) const { return *array(name, 1); }

int Block::integer(const char *name, int smallest, int largest) const {
  const double value = number(name);
  if (!(value >= smallest && value <= largest && value == std::floor(value)))
    fail("%s is %g; it must be a whole number from %d to %d", name, value, smallest, largest);
  return int(value);
}

Kernel::~Kernel() = default;

void fail(const char *format, ...) {
  char message[512];
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  throw std::runtime_error(message);
}

}  // namespace mlffd
