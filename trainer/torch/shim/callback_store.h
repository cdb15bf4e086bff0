// The caller's key-value store as libtorch's.
#pragma once

#include "lcl_collectives.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/Store.hpp>

namespace lcl {

inline lcl_string view(const std::string &text) { return {text.data(), text.size()}; }

inline std::vector<lcl_string> views(const std::vector<std::string> &texts) {
  std::vector<lcl_string> list;
  list.reserve(texts.size());
  for (const auto &text : texts) {
    list.push_back(view(text));
  }
  return list;
}

inline lcl_string view(const std::vector<uint8_t> &bytes) { return {reinterpret_cast<const char *>(bytes.data()), bytes.size()}; }

// The caller's store. Its errors become exceptions here and errors again at the end of `lcl_group_form`.
class CallbackStore : public c10d::Store {
public:
  CallbackStore(lcl_store callbacks, std::chrono::milliseconds timeout)
      : c10d::Store(timeout), callbacks_(new lcl_store(callbacks), [](const lcl_store *store) {
          store->drop(store->data);
          delete store;
        }) {}

  c10::intrusive_ptr<c10d::Store> clone() override { return c10::make_intrusive<CallbackStore>(*this); }

  using c10d::Store::set;
  void set(const std::string &key, const std::vector<uint8_t> &value) override {
    check_status(callbacks_->set(callbacks_->data, view(key), value.data(), value.size(), limit()));
  }

  using c10d::Store::compareSet;
  std::vector<uint8_t> compareSet(const std::string &key, const std::vector<uint8_t> &expected,
                                  const std::vector<uint8_t> &desired) override {
    std::vector<uint8_t> value;
    check_status(callbacks_->compare_set(callbacks_->data, view(key), view(expected), view(desired), &value, limit()));
    return value;
  }

  std::vector<uint8_t> get(const std::string &key) override {
    std::vector<uint8_t> value;
    check_status(callbacks_->get(callbacks_->data, view(key), &value, limit()));
    return value;
  }

  int64_t add(const std::string &key, int64_t amount) override {
    int64_t sum = 0;
    check_status(callbacks_->add(callbacks_->data, view(key), amount, &sum, limit()));
    return sum;
  }

  bool deleteKey(const std::string &key) override {
    int32_t removed = 0;
    check_status(callbacks_->remove(callbacks_->data, view(key), &removed, limit()));
    return removed != 0;
  }

  bool check(const std::vector<std::string> &keys) override {
    const auto list = views(keys);
    int32_t present = 0;
    check_status(callbacks_->check(callbacks_->data, list.data(), list.size(), &present, limit()));
    return present != 0;
  }

  int64_t getNumKeys() override {
    int64_t keys = 0;
    check_status(callbacks_->count(callbacks_->data, &keys, limit()));
    return keys;
  }

  void wait(const std::vector<std::string> &keys) override { wait(keys, timeout_); }

  void wait(const std::vector<std::string> &keys, const std::chrono::milliseconds &timeout) override {
    const auto list = views(keys);
    const auto bounded = timeout.count() > 0 ? std::min<int64_t>(timeout.count(), limit()) : limit();
    check_status(callbacks_->wait(callbacks_->data, list.data(), list.size(), bounded));
  }

private:
  int64_t limit() const { return std::max<int64_t>(timeout_.count(), 1); }

  static void check_status(int status) {
    if (status != 0) {
      throw std::runtime_error(lcl_last_error());
    }
  }

  std::shared_ptr<const lcl_store> callbacks_;
};

} // namespace lcl
